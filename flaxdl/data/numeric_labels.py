"""Multi-label and regression targets: conversion of label arrays, and checks for the tasks.

Labels are float32 [N, K], or [N] for a single number, with NaN for missing entries. N: examples, K:
classes, or columns of numbers.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from flaxdl.data.class_folders import format_names
from flaxdl.data.source import Splits
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


def as_numbers(
    labels: Mapping[str, np.ndarray], names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Converts labels that are not single classes to float32 if they are numbers [N] or [N, K].

    Floats are converted; integers and booleans [N, K] only if they have names. These are `names`
    or, if all entries are 0, 1 or NaN, the column numbers. Other labels, such as those of custom
    tasks, are unchanged.

    Args:
        labels: label arrays by user-facing name, that of the training split first.
        names: names of the columns; a single one for labels [N].

    Returns:
        The labels, and the names of the columns.

    Raises:
        UserError: if labels have no columns that `names` could be for, or another number of them,
            or if a number is infinite in float32.
    """
    arrays = labels.values()
    ranks, kinds = {label.ndim for label in arrays}, {label.dtype.kind for label in arrays}
    if ranks == {2} and kinds <= set("fbiu"):
        sizes = {label.shape[1] for label in arrays}
        if names is None and len(sizes) == 1 and sizes != {0} and all(map(is_zero_or_one, arrays)):
            names = tuple(map(str, range(*sizes)))
        elif names is not None and sizes != {len(names)}:
            raise UserError(
                f"classes must name each column of the labels, got {len(names)} names for "
                f"{_shapes(labels.items())}"
            )
    elif names is not None and not (ranks == {1} and kinds == {"f"} and len(names) == 1):
        raise UserError(
            f"classes has {len(names)} names, so labels must be one class per example (integers or "
            f"strings [N]), or numbers in {len(names)} columns, got {_shapes(labels.items())}"
        )
    found = {
        name: _as_float32(name, label)
        if label.ndim <= 2 and (label.dtype.kind == "f" or (label.ndim == 2 and names is not None))
        else label
        for name, label in labels.items()
    }
    return found, None if names is None else tuple(names)


def is_zero_or_one(labels: np.ndarray) -> bool:
    """Returns True if all numbers are 0, 1 or NaN."""
    return bool(np.all((labels == 0) | (labels == 1) | np.isnan(labels)))


def is_missing_label(labels: np.ndarray) -> np.ndarray:
    """Returns True for each example whose labels, float[N] or [N, K], are all NaN; bool[N]."""
    if labels.ndim > 2 or labels.dtype.kind != "f" or not labels.size:
        return np.zeros(len(labels), bool)
    return np.all(np.isnan(labels.reshape(len(labels), -1)), axis=1, keepdims=True)[:, 0]


def check_multi_label(splits: Splits) -> None:
    """Checks that labels are 0, 1 or NaN (missing) for each example and class, [N, K].

    Warns about classes that have only one value in the training split, or that cannot be evaluated.

    Raises:
        UserError: if labels have another shape or other entries, or if a class has no known entry
            in the training split; the message contains a remedy.
    """
    found = list(_labels(splits))
    for name, labels in found:
        if labels.ndim != 2 or labels.dtype.kind not in "fbiu":
            remedy = (
                "; numbers need the task Regression"
                if labels.dtype.kind == "f" and labels.ndim <= 2
                else "; single classes need the task Classification, and several labels per "
                "example come from arrays [N, K], from a table with targets or label_separator, or "
                "from an ImageFolder with multi_label"
            )
            raise UserError(
                f"{name} must be 0, 1 or NaN (missing) for each example and class, [N, K], got "
                f"{labels.dtype} {list(labels.shape)}{remedy}"
            )
    _check_columns(found, splits.classes)
    for name, labels in found:
        wrong = np.argwhere(~((labels == 0) | (labels == 1) | np.isnan(labels)))
        if len(wrong):
            row, column = wrong[0]
            raise UserError(
                f"{name} must be 0, 1 or NaN (missing), got {labels[row, column]:g} at example "
                f"{row}{_in_column(column, splits.classes)}; other numbers need the task "
                "Regression"
            )
    _check_known(splits)


def check_numeric_targets(splits: Splits) -> None:
    """Checks that labels are floating-point numbers or NaN (missing), [N] or [N, K].

    Warns about columns that have only one value in the training split, or that cannot be evaluated.

    Raises:
        UserError: if labels have another shape or dtype or are infinite, or if a column has no
            known entry in the training split; the message contains a remedy.
    """
    found = list(_labels(splits))
    for name, labels in found:
        if labels.ndim not in (1, 2) or labels.dtype.kind != "f":
            # Other names are those of strings, which have become class numbers.
            has_numbers = splits.classes in (
                None,
                tuple(map(str, range(len(splits.classes or ())))),
            )
            is_array = labels.dtype.kind in "biu" and labels.ndim <= 2 and name != "label"
            cast = f" ({name}.astype('float32'))" if is_array and has_numbers else ""
            raise UserError(
                f"{name} must be floating-point numbers, [N] or [N, K], got {labels.dtype} "
                f"{list(labels.shape)}; classes need the task Classification, and numbers must be "
                f"floats in arrays{cast} and are read from a table with targets"
            )
    _check_columns(found, splits.classes)
    for name, labels in found:
        columns = labels.reshape(len(labels), -1)
        wrong = np.argwhere(np.isinf(columns))
        if len(wrong):
            row, column = wrong[0]
            raise UserError(
                f"{name} must be finite or NaN (missing), got {columns[row, column]} at example "
                f"{row}{_in_column(column, splits.classes)}"
            )
    _check_known(splits)


def _labels(splits: Splits) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and labels of each split; of one example if the others must be read."""
    for dataset in (splits.train, splits.validation, splits.test):
        if dataset is None:
            continue
        labels = dataset.labels()
        if labels is None:
            labels = dataset.gather(np.arange(1)).get("label")
        if labels is None:
            raise UserError("the task needs the field 'label', which the data do not have")
        yield dataset.name_of("label"), labels


def _check_columns(found: Sequence[tuple[str, np.ndarray]], classes: Sequence[str] | None) -> None:
    """Checks that the labels of all splits have the same columns, as many as there are names."""
    ranks = {labels.ndim for _, labels in found}
    sizes = {1 if labels.ndim == 1 else labels.shape[1] for _, labels in found}
    expected = sizes if classes is None else {len(classes)}
    if len(ranks) > 1 or len(sizes) > 1 or sizes != expected or 0 in sizes:
        names = "" if classes is None else f", as many as the {len(classes)} names"
        raise UserError(
            f"labels of all splits must have the same number of columns{names}, got "
            f"{_shapes(found)}"
        )


def _check_known(splits: Splits) -> None:
    """Checks that each column has known values in training, and warns if they are all equal."""
    for dataset in (splits.train, splits.validation, splits.test):
        labels = None if dataset is None else dataset.labels()
        if dataset is None or labels is None:
            continue
        name = dataset.name_of("label")
        columns = labels.reshape(len(labels), -1).astype(np.float64)  # from any dtype
        is_known = ~np.isnan(columns)
        unknown = np.flatnonzero(~is_known.any(0))
        if len(unknown):
            shown = _names(unknown, splits.classes)
            if dataset is splits.train:
                raise UserError(
                    f"{name} has no known value in the training split in {shown}: all are missing "
                    "(NaN); remove columns that cannot be learned"
                )
            split = "validation" if dataset is splits.validation else "test"
            _LOGGER.warning(
                "%s has no known value in the %s split in %s, which cannot be evaluated there",
                name, split, shown,
            )  # fmt: skip
        if dataset is splits.train:
            lowest = np.min(columns, axis=0, where=is_known, initial=np.inf)
            highest = np.max(columns, axis=0, where=is_known, initial=-np.inf)
            if len(constant := np.flatnonzero(lowest == highest)):
                _LOGGER.warning(
                    "%s has only one value in the training split in %s, which cannot be learned",
                    name, _names(constant, splits.classes),
                )  # fmt: skip


def _in_column(column: int, classes: tuple[str, ...] | None) -> str:
    return f" in column {column if classes is None else repr(classes[column])}"


def _names(columns: np.ndarray, classes: tuple[str, ...] | None) -> str:
    which = "column" if len(columns) == 1 else "columns"
    names = [str(column) if classes is None else classes[column] for column in columns.tolist()]
    return f"{which} {format_names(names)}"


def _shapes(labels: Iterable[tuple[str, np.ndarray]]) -> str:
    return ", ".join(f"{name} {x.dtype} {list(x.shape)}" for name, x in labels)


def _as_float32(name: str, label: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        numbers = label.astype(np.float32)
    wrong = np.flatnonzero(np.isinf(numbers).reshape(len(numbers), -1).any(1))
    if len(wrong):
        raise UserError(
            f"{name} must be finite in float32 or NaN (missing), got {label[wrong[0]]} at example "
            f"{wrong[0]}"
        )
    return numbers
