"""Conversion of label arrays to class numbers, and checks that labels can be classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.dataset import class_labels
from flaxdl.data.numeric_labels import as_numbers, is_zero_or_one
from flaxdl.data.source import Splits
from flaxdl.errors import UserError

_SHOWN = 10  # classes
_MAX_CLASSES = 1000  # or the number of training examples, if that is larger


@dataclass(frozen=True)
class Classes:
    """Labels by array name, with the class names."""

    labels: Mapping[str, np.ndarray]
    """Class numbers, int32[N]; other labels as returned by `as_numbers`."""
    names: tuple[str, ...] | None
    """Names of the classes or of the columns of labels [N, K]; None if there are none."""
    error: str | None = None
    """Reason why the labels cannot be classes (but may be other targets); None if they can."""


def as_classes(labels: Mapping[str, np.ndarray], names: Sequence[str] | None) -> Classes:
    """Converts labels to class numbers if they are integers or strings, one per example.

    Strings are class names, numbered in alphabetical order. Integers must be in 0..K - 1, where K
    is the number of classes. Other labels are converted by `as_numbers`.

    Args:
        labels: label arrays by user-facing name, that of the training split first.
        names: names of the classes or columns; by default, taken from the labels.

    Raises:
        UserError: if a class number is out of range, if a string label has no name in `names` (by
            default, in the training labels), or if `names` do not fit other labels.
    """
    if any(label.ndim != 1 for label in labels.values()):
        return Classes(*as_numbers(labels, names))
    if all(map(_is_text, labels.values())):
        return _texts_as_classes(labels, names)
    if not all(label.dtype.kind in "iu" for label in labels.values()):
        return Classes(*as_numbers(labels, names))
    train, *_ = labels
    count = 1 + max((int(label.max()) for label in labels.values() if label.size), default=0)
    if names is None and any(label.size and label.min() < 0 for label in labels.values()):
        return Classes(labels, None, _describe_negative(labels))
    error = _describe_numbers(train, labels[train]) if names is None else None
    if names is None and count > max(len(labels[train]), _MAX_CLASSES):
        return Classes(labels, None, error)
    names = tuple(map(str, range(count) if names is None else names))
    numbers = {
        name: class_labels(label, len(names), where=name, numbers=np.arange(len(label)))
        for name, label in labels.items()
    }
    return Classes(numbers, names, error or _describe_unknown(numbers, names))


def check_class_labels(splits: Splits) -> None:
    """Checks that labels are class numbers, one per example.

    Raises:
        UserError: if labels are not class numbers; the message contains their name, dtype and
            shape, and a remedy.
    """
    if splits.train.label_error is not None:
        raise UserError(splits.train.label_error)
    for dataset in (splits.train, splits.validation, splits.test):
        labels = None if dataset is None else dataset.labels()
        if dataset is None or labels is None:
            continue
        name = dataset.name_of("label")
        if labels.ndim == 1 and labels.dtype.kind in "iu":
            if splits.classes is not None:
                numbers = np.arange(len(labels))
                class_labels(labels, len(splits.classes), where=name, numbers=numbers)
            continue
        raise UserError(
            f"{name} must be one integer class number per example, got "
            f"{labels.dtype} {list(labels.shape)}{_remedy(name, labels)}"
        )


def describe_missing(name: str, labels: np.ndarray, is_missing: np.ndarray) -> str:
    """Describes why labels cannot be classes if some examples have none.

    Args:
        name: user-facing name of the labels.
        labels: float labels, [N] or [N, K].
        is_missing: result of `is_missing_label`.
    """
    tasks = "Regression" if labels.ndim == 1 else "MultiLabelClassification or Regression"
    return (
        f"{name} must be one integer class number per example, got {labels.dtype} "
        f"{list(labels.shape)}, with nan at example {np.flatnonzero(is_missing)[0]}; remove "
        f"examples without a class, or use the task {tasks}"
    )


def _texts_as_classes(labels: Mapping[str, np.ndarray], names: Sequence[str] | None) -> Classes:
    texts = {
        name: [_text(label).strip() for label in of_split.tolist()]
        for name, of_split in labels.items()
    }
    train, *_ = texts
    classes = tuple(names) if names is not None else tuple(sorted(set(texts[train])))
    numbers = {name: number for number, name in enumerate(classes)}
    for name, of_split in texts.items():
        unknown = sorted(set(of_split) - set(classes))
        if unknown:
            raise UserError(
                f"{name} has classes that are not in {train if names is None else 'classes'}: "
                f"{_some(unknown)}{did_you_mean(unknown[0], classes)}"
            )
    found = {
        name: np.array([numbers[text] for text in of_split], np.int32)
        for name, of_split in texts.items()
    }
    if error := _describe_unknown(found, classes):
        raise UserError(error)
    return Classes(found, classes)


def _is_text(label: np.ndarray) -> bool:
    if label.dtype.kind == "O":
        return all(isinstance(text, str | bytes) for text in label)
    return label.dtype.kind in "UST"


def _text(label: str | bytes) -> str:
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else label


def _describe_negative(labels: Mapping[str, np.ndarray]) -> str:
    """Describes the first label below 0, such as a regression target."""
    name, label = next((n, x) for n, x in labels.items() if x.size and x.min() < 0)
    place = int(np.flatnonzero(label < 0)[0])
    return f"class labels in {name} must start at 0, got {label[place]} at example {place}"


def _describe_numbers(name: str, label: np.ndarray) -> str | None:
    """Describes why training labels are not classes numbered from 0; None if they are."""
    present = np.unique(label)
    if not len(present) or present[0] < 0:
        return None
    low, high, count = int(present[0]), int(present[-1]), len(present)
    from_zero = f"renumber them with numpy.unique({name}, return_inverse=True)[1]"
    if low > 0:
        remedy = f"subtract {low}" if high - low + 1 == count else from_zero
        return (
            f"{name} ({label.dtype}) has {count} distinct values from {low} to {high}, but classes "
            f"must start at 0: {remedy}, in every split"
        )
    if high + 1 > max(len(label), _MAX_CLASSES):
        return (
            f"{name} has only {count:,} distinct values from 0 to {high:,}, too few for "
            f"{high + 1:,} classes: {from_zero}"
        )
    return None


def _describe_unknown(labels: Mapping[str, np.ndarray], classes: Sequence[str]) -> str | None:
    """Describes the first split that has classes without training examples; None without one."""
    train, *others = labels
    known = np.bincount(labels[train], minlength=len(classes)) > 0
    for name in others:
        counts = np.bincount(labels[name], minlength=len(classes))
        unknown = np.flatnonzero((counts > 0) & ~known)
        if len(unknown):
            shown = [f"{classes[int(number)]} ({counts[number]:,})" for number in unknown]
            return f"{name} has examples of classes that are not in {train}: {_some(shown)}"
    return None


def _remedy(name: str, labels: np.ndarray) -> str:
    """Returns a remedy for labels that are not class numbers, to append to an error message."""
    is_column = labels.ndim == 2 and labels.shape[1] == 1
    if labels.dtype.kind not in "fbiu":
        return f"; use {name}[:, 0]" if is_column else ""
    if labels.ndim > 2:
        return ""
    cast = ".astype(int)" if labels.dtype.kind in "fb" else ""
    is_multi_label = labels.ndim == 2 and is_zero_or_one(labels)
    task = "MultiLabelClassification" if is_multi_label else "Regression"
    is_whole = labels == np.rint(labels)  # False for NaN
    if is_column and is_whole.all():
        return f"; use {name}[:, 0]{cast}, or the task {task}"
    if is_multi_label and np.all(labels.sum(1) == 1):
        return f", one-hot; use {name}.argmax(1), or the task {task}"
    if labels.ndim == 2:
        return f"; use the task {task}"
    if is_whole.all():
        return f"; use {name}{cast}"
    place = np.flatnonzero(~is_whole)[0]
    return f", with {labels[place]} at example {place}; use the task Regression"


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
