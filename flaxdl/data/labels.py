"""Labels of a user's own arrays: which classes they are, and whether they can be classes at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.dataset import class_labels
from flaxdl.data.source import Splits
from flaxdl.errors import UserError

_SHOWN = 10  # classes
_MOST_CLASSES = 1000  # above which there must be as many examples


@dataclass(frozen=True)
class Classes:
    """Labels by the user's names of their arrays, and what they are called."""

    labels: Mapping[str, np.ndarray]
    """int32[N]; labels that are no classes, such as the targets of a regression, as they were."""
    names: tuple[str, ...] | None
    """None where labels are no classes."""
    fault: str | None = None
    """Why a classifier cannot learn them, though they may be the targets of something else."""


def as_classes(labels: Mapping[str, np.ndarray], names: Sequence[str] | None) -> Classes:
    """Makes labels numbers of classes, if they are whole numbers or texts, one for each example.

    Texts are classes by name, in their order in the alphabet. Whole numbers are 0..K - 1.

    Args:
        labels: the user's names of arrays → the arrays, that of the training split first.
        names: what the classes are called; by default as in the labels.

    Raises:
        UserError: naming the array, if a number is out of range, or training lacks a text.
    """
    if any(label.ndim != 1 for label in labels.values()):
        return Classes(labels, None)
    if all(map(_is_text, labels.values())):
        return _texts_as_classes(labels, names)
    if not all(label.dtype.kind in "iu" for label in labels.values()):
        return Classes(labels, None)
    train, *_ = labels
    count = 1 + max((int(label.max()) for label in labels.values() if label.size), default=0)
    if names is None and any(label.size and label.min() < 0 for label in labels.values()):
        return Classes(labels, None, _fault_of_negative(labels))
    fault = _fault_of_numbers(train, labels[train]) if names is None else None
    if names is None and count > max(len(labels[train]), _MOST_CLASSES):
        return Classes(labels, None, fault)
    names = tuple(map(str, range(count) if names is None else names))
    numbers = {
        name: class_labels(label, len(names), where=name, numbers=np.arange(len(label)))
        for name, label in labels.items()
    }
    return Classes(numbers, names, fault or _fault_of_unknown(numbers, names))


def check_class_labels(splits: Splits) -> None:
    """Checks that labels are what a classifier can learn: numbers of classes, one an example.

    Raises:
        UserError: with the user's name of the labels, what they are, and what to write instead.
    """
    if splits.train.class_fault is not None:
        raise UserError(splits.train.class_fault)
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
            f"{name} must be one whole number for each example, the number of its class, got "
            f"{labels.dtype} {list(labels.shape)}{_remedy(name, labels)}"
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
                f"{name} holds classes that {train if names is None else 'classes'} lacks: "
                f"{_some(unknown)}{did_you_mean(unknown[0], classes)}"
            )
    found = {
        name: np.array([numbers[text] for text in of_split], np.int32)
        for name, of_split in texts.items()
    }
    if fault := _fault_of_unknown(found, classes):
        raise UserError(fault)
    return Classes(found, classes)


def _is_text(label: np.ndarray) -> bool:
    if label.dtype.kind == "O":
        return all(isinstance(text, str | bytes) for text in label)
    return label.dtype.kind in "UST"


def _text(label: str | bytes) -> str:
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else label


def _fault_of_negative(labels: Mapping[str, np.ndarray]) -> str:
    """Describes the first label below 0, such as the target of a regression."""
    name, label = next((n, x) for n, x in labels.items() if x.size and x.min() < 0)
    place = int(np.flatnonzero(label < 0)[0])
    return f"labels must be classes from 0 on in {name}, got {label[place]} at example {place}"


def _fault_of_numbers(name: str, label: np.ndarray) -> str | None:
    """Describes training labels that are no classes numbered from 0."""
    present = np.unique(label)
    if not len(present) or present[0] < 0:
        return None
    low, high, count = int(present[0]), int(present[-1]), len(present)
    from_zero = f"numpy.unique({name}, return_inverse=True)[1] numbers them from 0 without gaps"
    if low > 0:
        remedy = f"subtract {low}" if high - low + 1 == count else from_zero
        return (
            f"{name} ({label.dtype}) has {count} distinct values from {low} to {high}, but class 0 "
            f"has no example there: {remedy}, in every split"
        )
    if high + 1 > max(len(label), _MOST_CLASSES):
        return (
            f"{name} has {count:,} different labels from 0 to {high:,}, which are too few to be "
            f"numbers of {high + 1:,} classes: {from_zero}"
        )
    return None


def _fault_of_unknown(labels: Mapping[str, np.ndarray], classes: Sequence[str]) -> str | None:
    """Describes the first split with examples of a class of which training has none."""
    train, *others = labels
    known = np.bincount(labels[train], minlength=len(classes)) > 0
    for name in others:
        counts = np.bincount(labels[name], minlength=len(classes))
        unknown = np.flatnonzero((counts > 0) & ~known)
        if len(unknown):
            shown = [f"{classes[int(number)]} ({counts[number]:,})" for number in unknown]
            return f"{name} holds examples of classes of which {train} has none: {_some(shown)}"
    return None


def _remedy(name: str, labels: np.ndarray) -> str:
    """Remedy for labels that are not class numbers, as the end of a message."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        whole = ".astype(int)" if labels.dtype.kind in "fb" else ""
        return f"; use {name}[:, 0]{whole}"
    if labels.dtype.kind not in "fbiu":
        return ""
    if labels.ndim == 2 and np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(1) == 1):
        return f", one-hot; use {name}.argmax(1)"
    if labels.ndim != 1:
        return ""
    if labels.dtype.kind == "f" and not np.all(labels == np.rint(labels)):
        place = np.flatnonzero(~(labels == np.rint(labels)))[0]
        return (
            f", with {labels[place]} at example {place}; "
            "other numbers than classes need a task of your own (flaxdl.training.Task)"
        )
    return f"; use {name}.astype(int)"


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
