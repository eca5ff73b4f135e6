"""Label columns of a table: a class, several classes, or numbers for each row."""

import logging
import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxdl.data.class_folders import format_names
from flaxdl.data.class_spellings import class_key, class_names
from flaxdl.data.table_cells import as_number, find_error, in_float32, written
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)

Label = tuple[Any, ...]
"""Label of a row: its classes, or a number or None for each target column."""


@dataclass(frozen=True)
class LabelColumns(ABC):
    """Base class of label columns."""

    columns: tuple[str, ...]
    """Names of the columns."""

    @abstractmethod
    def parse(self, cells: Sequence[Any]) -> tuple[Label, list[str]]:
        """Returns the label in the cells of a row, and descriptions of the errors in it."""

    @abstractmethod
    def find_names(self, path: str, labels: Sequence[Label]) -> dict[str, str]:
        """Returns the names of the classes or target columns of a file by their keys, in order.

        Raises:
            UserError: if there are too few.
        """

    @abstractmethod
    def array(self, labels: Sequence[Label], names: Mapping[str, str]) -> np.ndarray:
        """Returns labels as an array: int32[N], or float32[N, K] for K classes or targets."""

    def describe_lacking(
        self, path: str, names: Mapping[str, str], lacking: Sequence[str], remedy: str
    ) -> str | None:
        """Describes names without training rows, if these are an error.

        Args:
            path: path of the table.
            names: all names.
            lacking: names that no row of the training split has.
            remedy: how to keep classes from being held out as a whole.
        """
        return None

    def names_in(self, label: Label) -> Sequence[str]:
        """Returns the classes of a label as written, or the target columns that have a value."""
        return label

    def keys(self, label: Label) -> Sequence[str]:
        """Returns the keys of `names_in`."""
        return [class_key(name) for name in self.names_in(label)]

    def is_missing(self, label: Label) -> bool:
        """Returns True if a row has no information about the label."""
        return False

    def content(self, label: Label) -> Hashable:
        """Returns a value that is equal for equal labels in different spellings."""
        return frozenset(self.keys(label))

    def shown(self, label: Label) -> str:
        """Returns a label for messages."""
        return ", ".join(label) or "no label"


@dataclass(frozen=True)
class ClassColumn(LabelColumns):
    """A column with the class of each row."""

    def parse(self, cells: Sequence[Any]) -> tuple[Label, list[str]]:
        """Returns the class."""
        error = find_error(self.columns[0], cells[0])
        return ((), [error]) if error else ((written(cells[0]),), [])

    def find_names(self, path: str, labels: Sequence[Label]) -> dict[str, str]:
        """Returns the class names, of which there must be two."""
        names = class_names((name for (name,) in labels), path)
        if len(names) < 2:
            raise UserError(
                f"{path} must have at least two classes in column {self.columns[0]!r}, has only "
                f"{', '.join(names.values())}"
            )
        return names

    def array(self, labels: Sequence[Label], names: Mapping[str, str]) -> np.ndarray:
        """Returns class numbers, int32[N]."""
        numbers = {key: number for number, key in enumerate(names)}
        return np.array([numbers[key] for label in labels for key in self.keys(label)], np.int32)

    def describe_lacking(
        self, path: str, names: Mapping[str, str], lacking: Sequence[str], remedy: str
    ) -> str:
        """Describes classes that are held out as a whole."""
        (column,) = self.columns
        which = "class" if len(lacking) == 1 else "classes"
        are_numbers = all(map(_is_number, names.values()))
        hint = f"; numbers to predict need --data.targets {column}" if are_numbers else ""
        return (
            f"{len(lacking)} of the {len(names)} classes in column {column!r} of {path} "
            f"have too few rows, all of which are held out: {which} {format_names(lacking)}; add "
            f"rows, remove these classes, or {remedy}{hint}"
        )


@dataclass(frozen=True)
class SeparatedClasses(LabelColumns):
    """A column with any number of classes in each row, divided by a separator."""

    separator: str

    def parse(self, cells: Sequence[Any]) -> tuple[Label, list[str]]:
        """Returns the classes; an empty cell has none."""
        (cell,) = cells
        is_nan = isinstance(cell, float) and math.isnan(cell)
        if cell is None or is_nan or (isinstance(cell, str) and not cell.strip()):
            return (), []
        if error := find_error(self.columns[0], cell):
            return (), [error]
        names = (name.strip() for name in written(cell).split(self.separator))
        return tuple(filter(None, names)), []

    def find_names(self, path: str, labels: Sequence[Label]) -> dict[str, str]:
        """Returns the class names; warns if no cell contains the separator."""
        names = class_names((name for label in labels for name in label), path)
        if not names:
            raise UserError(f"{path} has no labels in column {self.columns[0]!r}")
        if max(map(len, labels)) == 1:
            _LOGGER.warning(
                "%s: no row has several labels in column %s divided by %r (label_separator)",
                path, self.columns[0], self.separator,
            )  # fmt: skip
        return names

    def array(self, labels: Sequence[Label], names: Mapping[str, str]) -> np.ndarray:
        """Returns 1 for the classes of each row and 0 for the others, float32[N, K]."""
        numbers = {key: number for number, key in enumerate(names)}
        found = np.zeros((len(labels), len(names)), np.float32)
        for row, label in zip(found, labels, strict=True):
            row[[numbers[key] for key in self.keys(label)]] = 1
        return found


@dataclass(frozen=True)
class TargetColumns(LabelColumns):
    """Columns of numbers, in which values may be missing."""

    def parse(self, cells: Sequence[Any]) -> tuple[Label, list[str]]:
        """Returns a number or None for each column."""
        found = [_target(*field) for field in zip(self.columns, cells, strict=True)]
        errors = [value for value in found if isinstance(value, str)]
        return tuple(found), errors

    def find_names(self, path: str, labels: Sequence[Label]) -> dict[str, str]:
        """Returns the names of the columns."""
        return {name: name for name in self.columns}

    def array(self, labels: Sequence[Label], names: Mapping[str, str]) -> np.ndarray:
        """Returns the numbers, float32[N, K], with NaN for missing ones."""
        return np.array(labels, np.float32)

    def describe_lacking(
        self, path: str, names: Mapping[str, str], lacking: Sequence[str], remedy: str
    ) -> str:
        """Describes columns without a value in the training split."""
        which, these = ("column", "this") if len(lacking) == 1 else ("columns", "these")
        return (
            f"{path} has no value in the training split in {which} {format_names(lacking)}; remove "
            f"{these} {which} from targets, or {remedy}"
        )

    def names_in(self, label: Label) -> Sequence[str]:
        """Returns the columns that have a value."""
        values = zip(self.columns, label, strict=True)
        return [name for name, value in values if value is not None]

    def keys(self, label: Label) -> Sequence[str]:
        """Returns the columns that have a value."""
        return self.names_in(label)

    def is_missing(self, label: Label) -> bool:
        """Returns True if all values are missing."""
        return not self.names_in(label)

    def content(self, label: Label) -> Hashable:
        """Returns the numbers."""
        return label

    def shown(self, label: Label) -> str:
        """Returns the numbers for messages."""
        return ", ".join("no value" if value is None else f"{value:.9g}" for value in label)


def label_columns(label: str, targets: tuple[str, ...], separator: str | None) -> LabelColumns:
    """Returns the label columns of a source, given its fields.

    Args:
        label: name of the column with class labels, `label` by default.
        targets: names of the target columns, which replace it.
        separator: separator of several classes in the column `label`.

    Raises:
        UserError: if the fields exclude each other or are invalid.
    """
    if isinstance(targets, str):
        raise UserError(
            f"targets must be a tuple of names, such as ({targets!r},), got {targets!r}"
        )
    repeated = [name for name, count in Counter(targets).items() if count > 1]
    if repeated:
        raise UserError(f"targets must be different columns, got {', '.join(repeated)} repeatedly")
    if separator is not None and not separator:
        raise UserError("label_separator must not be empty; omit it for one label per row")
    if not targets:
        if separator is None:
            return ClassColumn((label,))
        return SeparatedClasses((label,), separator)
    for name, is_set, value in (
        ("label", label != "label", label),
        ("label_separator", separator is not None, separator),
    ):
        if is_set:
            raise UserError(
                f"targets replace the column of labels: omit targets or {name}, got targets "
                f"{', '.join(targets)} and {name} {value!r}"
            )
    return TargetColumns(targets)


def _is_number(name: str) -> bool:
    try:
        return not math.isnan(as_number(name))
    except ValueError:
        return False


def _target(column: str, cell: Any) -> float | str | None:
    """Returns a number rounded to float32, None if it is missing, or a description of the error."""
    if isinstance(cell, str) and cell.strip().lower() in ("true", "false"):
        return float(cell.strip().lower() == "true")
    try:
        number = as_number(cell)
    except ValueError:
        is_comma = isinstance(cell, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", cell)
        point = " with a decimal point" if is_comma else ""
        return (
            f"the value {cell!r:.40} in column {column}, must be a finite number{point}, true, "
            "false or empty"
        )
    if math.isinf(rounded := in_float32(number)):
        return f"the value {cell!r:.40} in column {column}, must be finite in float32"
    return None if math.isnan(number) else rounded
