"""Rows of labeled examples in a table: texts or image paths, labels, and optionally a weight."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.class_folders import format_names
from flaxdl.data.class_spellings import sort_names
from flaxdl.data.label_columns import Label, LabelColumns
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.table_cells import as_weight, decoded, find_error, written
from flaxdl.data.table_files import read_table
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


class Row(NamedTuple):
    """Row of a table without errors."""

    line: int
    values: list[str]
    """Values of the columns other than label and weight."""
    label: Label
    weight: float = 1.0


def read_rows(
    path: str,
    columns: Sequence[str],
    labels: LabelColumns,
    *,
    weight: str | None = None,
    separator: str | None,
    header: bool,
    encoding: str,
) -> tuple[list[Row], dict[int, str]]:
    """Reads some columns of a table as text, and the labels.

    Args:
        path: path of the file.
        columns: names of the columns to read as text.
        labels: label columns.
        weight: name of the column of example weights; None if all are 1.
        separator: see `read_table`, as for `header`.
        header: True if the first row contains the column names.
        encoding: encoding of the file, and of bytes in it.

    Returns:
        The valid rows, and the error descriptions of the other lines by line number.

    Raises:
        UserError: if the file cannot be read or has no rows, or if a column is missing.
    """
    names = [*columns, *labels.columns, *([weight] if weight is not None else [])]
    good, broken = read_table(path, names, separator=separator, header=header, encoding=encoding)
    rows = []
    for line, cells in good:
        cells = [decoded(cell, encoding) for cell in cells]
        texts, others = cells[: len(columns)], cells[len(columns) :]
        label, label_errors = labels.parse(others[: len(labels.columns)])
        number = 1.0 if weight is None else as_weight(weight, others[-1])
        errors = [
            *map(find_error, columns, texts),
            *label_errors,
            number if isinstance(number, str) else None,
        ]
        if isinstance(number, str) or any(errors):
            broken[line] = f"has {'; '.join(filter(None, errors))}"
        else:
            rows.append(Row(line, [written(text) for text in texts], label, number))
    return rows, broken


def without_missing_labels(path: str, rows: Sequence[Row], labels: LabelColumns) -> list[Row]:
    """Drops rows without any target value, with a warning.

    Raises:
        UserError: if no rows remain.
    """
    kept = [row for row in rows if not labels.is_missing(row.label)]
    columns = ", ".join(labels.columns)
    if not kept:
        raise UserError(f"{path} has no row with a value in {columns}")
    if len(kept) < len(rows):
        _LOGGER.warning(
            "%s: dropped %s of %s rows, which have no value in %s",
            path, f"{len(rows) - len(kept):,}", f"{len(rows):,}", columns,
        )  # fmt: skip
    return kept


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


def check_known(
    path: str,
    rows: Iterable[Row],
    names: Mapping[str, str],
    *,
    labels: LabelColumns,
    known_from: str,
) -> None:
    """Checks that all classes of a file are those of another file, `known_from`.

    Raises:
        UserError: if there are other classes; the message lists them.
    """
    unknown = sort_names(
        {
            name
            for row in rows
            for name, key in zip(labels.names_in(row.label), labels.keys(row.label), strict=True)
            if key not in names
        }
    )
    if unknown:
        raise UserError(
            f"{path} has classes that are not in {known_from}: {format_names(unknown)}"
            f"{did_you_mean(unknown[0], names.values())}"
        )


def check_parts(
    path: str,
    rows: Sequence[Row],
    parts: Mapping[str, Sequence[Row]],
    names: Mapping[str, str],
    *,
    labels: LabelColumns,
    weight: str | None,
    remedy: str,
) -> None:
    """Checks that no split is empty or without weight, and that training rows have all labels.

    Args:
        path: path of the table.
        rows: all rows of the table.
        parts: rows by split.
        names: names by key, see `LabelColumns.find_names`.
        labels: label columns.
        weight: name of the column of example weights; None if all are 1.
        remedy: how to keep classes from being held out as a whole.

    Raises:
        UserError: if a split is empty or all its weights are 0, if a class is only in other splits,
            or if a target column has no value in the training split.
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
    present = {key for row in parts["train"] for key in labels.keys(row.label)}
    lacking = sort_names({name for key, name in names.items() if key not in present})
    error = labels.describe_lacking(path, names, lacking, remedy) if lacking else None
    if error is not None:
        raise UserError(error)


def labels_of(rows: Sequence[Row], names: Mapping[str, str], labels: LabelColumns) -> np.ndarray:
    """Returns the label of each row, see `LabelColumns.array`."""
    return labels.array([row.label for row in rows], names)


def weights_of(rows: Sequence[Row]) -> np.ndarray:
    """Returns the weight of each row, float32[N]."""
    return np.array([row.weight for row in rows], np.float32)
