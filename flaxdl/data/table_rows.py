"""Rows of labeled examples in a table: texts or image paths, a label, and optionally a weight."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.class_spellings import class_key, class_names, sort_names
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.table_files import read_table
from flaxdl.errors import UserError


class Row(NamedTuple):
    """Row of a table without missing values."""

    line: int
    values: list[str]
    """Values of the columns, the label last."""
    weight: float = 1.0

    @property
    def label(self) -> str:
        """Label of the example."""
        return self.values[-1]


def read_rows(
    path: str,
    columns: Sequence[str],
    *,
    weight: str | None = None,
    separator: str | None,
    header: bool,
    encoding: str,
) -> tuple[list[Row], dict[int, str]]:
    """Reads some columns of a table as text.

    Args:
        path: path of the file.
        columns: names of the columns, that of the label last.
        weight: name of the column of example weights; None if all are 1.
        separator: see `read_table`, as for `header`.
        header: True if the first row contains the column names.
        encoding: encoding of the file, and of bytes in it.

    Returns:
        The valid rows, and the error descriptions of the other lines by line number.

    Raises:
        UserError: if the file cannot be read or has no rows, or if a column is missing.
    """
    columns = [*columns, *([weight] if weight is not None else [])]
    good, broken = read_table(path, columns, separator=separator, header=header, encoding=encoding)
    rows = []
    for line, values in good:
        values = [_decoded(value, encoding) for value in values]
        errors = [_find_error(*field) for field in zip(columns, values, strict=True)]
        number = 1.0 if weight is None or errors[-1] else _as_weight(values[-1])
        if number is None:
            errors[-1] = (
                f"the weight {values[-1]!r:.40}, must be a number of at least 0 that is finite in "
                "float32"
            )
        if any(errors):
            broken[line] = f"has {'; '.join(filter(None, errors))}"
        else:
            texts = values if weight is None else values[:-1]
            rows.append(Row(line, [_written(value) for value in texts], number or 0.0))
    return rows, broken


def count_broken(
    path: str,
    broken: Mapping[int, str],
    *,
    total: int,
    skipped: SkippedExamples,
    max_unreadable: int,
    hint: str = "",
) -> None:
    """Counts the broken lines of a table as skipped examples.

    Args:
        path: path of the table.
        broken: error descriptions by line number.
        total: number of rows of the table.
        skipped: counter of skipped examples.
        max_unreadable: its limit.
        hint: likely cause, for the error message.

    Raises:
        UserError: if there are more than `max_unreadable`; the message lists the first ones.
    """
    reasons = {f"{path}:{line}": f"{path}:{line} {broken[line]}" for line in sorted(broken)}
    if len(reasons) > max_unreadable:
        shown = list(reasons.values())[: max_unreadable + 1]
        lines = "1 line" if len(reasons) == 1 else f"{len(reasons):,} lines"
        raise UserError(
            f"{lines} cannot be read, more than max_unreadable = "
            f"{max_unreadable}, of {total:,} in {path}{hint}; to skip them, set "
            f"--data.max-unreadable {len(reasons)}:\n  " + "\n  ".join(shown)
        )
    for name, reason in reasons.items():
        skipped.add(name, reason)


def find_classes(path: str, rows: Iterable[Row], label: str) -> dict[str, str]:
    """Returns the class names by `class_key`, see `class_names`.

    Raises:
        UserError: if there are less than two classes.
    """
    names = class_names((row.label for row in rows), path)
    if len(names) < 2:
        raise UserError(
            f"{path} must have at least two classes in column {label!r}, has only "
            f"{', '.join(names.values())}"
        )
    return names


def check_known(path: str, rows: Iterable[Row], names: Mapping[str, str], known_from: str) -> None:
    """Checks that all classes of a file are those of another file, `known_from`.

    Raises:
        UserError: if there are other classes; the message lists them.
    """
    unknown = sort_names({row.label for row in rows if class_key(row.label) not in names})
    if unknown:
        raise UserError(
            f"{path} has classes that are not in {known_from}: {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], names.values())}"
        )


def check_parts(
    path: str,
    rows: Sequence[Row],
    parts: Mapping[str, Sequence[Row]],
    names: Mapping[str, str],
    *,
    label: str,
    weight: str | None,
    remedy: str,
) -> None:
    """Checks that no split is empty or without weight, and that each class has training examples.

    Args:
        path: path of the table.
        rows: all rows of the table.
        parts: rows by split.
        names: class names by `class_key`.
        label: name of the label column.
        weight: name of the column of example weights; None if all are 1.
        remedy: how to keep classes from being held out as a whole.

    Raises:
        UserError: if a split is empty or all its weights are 0, or if a class is only in other
            splits.
    """
    for split, part in parts.items():
        if not part:
            raise UserError(
                f"{path} has too few rows: none of {len(rows)} was assigned to the {split} split; "
                f"add rows or set --data.{split}-fraction"
            )
        if not any(row.weight for row in part):
            raise UserError(
                f"all weights in column {weight!r} of {path} are 0 in the {split} split"
            )
    missing = set(names.values()) - {names[class_key(row.label)] for row in parts["train"]}
    if missing:
        which = "class" if len(missing) == 1 else "classes"
        raise UserError(
            f"{len(missing)} of the {len(names)} classes in column {label!r} of {path} have too "
            f"few rows, all of which are held out: {which} {', '.join(sort_names(missing))}; add "
            f"rows, remove these classes, or {remedy}"
        )


def labels_of(rows: Sequence[Row], names: Mapping[str, str]) -> np.ndarray:
    """Returns the class number of each row, int32[N], given the class names by `class_key`."""
    numbers = {key: number for number, key in enumerate(names)}
    return np.array([numbers[class_key(row.label)] for row in rows], np.int32)


def weights_of(rows: Sequence[Row]) -> np.ndarray:
    """Returns the weight of each row, float32[N]."""
    return np.array([row.weight for row in rows], np.float32)


def _decoded(value: Any, encoding: str) -> Any:
    """Decodes bytes if possible, since Parquet files may store text as bytes."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode(encoding)
    except UnicodeError:
        return value


_Written = str | int | float | Decimal | date  # bool is an int, and datetime a date


def _find_error(column: str, value: Any) -> str | None:
    """Describes why a value is invalid, or returns None if it can be converted to text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"no value in column {column}"
    if isinstance(value, bytes):
        return f"bytes that are not text in column {column}"
    if not isinstance(value, _Written):
        kind = type(value).__name__
        return f"a value of type {kind} in column {column}, must be text, a number or a date"
    if isinstance(value, str) and not value.strip():
        return f"an empty text in column {column}"
    return None


def _as_weight(value: _Written) -> float | None:
    """Returns a weight rounded to float32; None if it is not at least 0 and finite in float32."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    return rounded if number >= 0 and rounded < math.inf else None


def _written(value: _Written) -> str:
    """Converts a value to text, and whole floats to text without decimals.

    Columns with missing values store integers as floats.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, Decimal):  # 2.50 becomes 2.5, as for floats
        value = int(value) if value == int(value) else f"{value:f}".rstrip("0")
    return str(value).encode("utf-8", "replace").decode()  # JSON may contain lone surrogates
