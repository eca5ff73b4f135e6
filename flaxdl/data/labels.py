"""Labels of a user's own arrays: which classes they are, and whether they can be classes at all."""

from collections.abc import Mapping, Sequence

import numpy as np

from flaxdl.data.dataset import class_labels
from flaxdl.data.source import Splits
from flaxdl.spelling import did_you_mean

_SHOWN = 10  # classes
_MOST_CLASSES = 1000  # above which there must be as many examples


def as_classes(
    labels: Mapping[str, np.ndarray], names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Makes labels numbers of classes, if they are whole numbers or texts, one for each example.

    Texts are classes by name, in their order in the alphabet. Whole numbers are 0..K - 1.

    Args:
        labels: the user's names of arrays → the arrays, that of the training split first.
        names: what the classes are called; by default as in the labels.

    Returns:
        int32[N] by the same names, and the names of the classes. Labels that are something else,
        such as the targets of a regression, come back as they are, with None for the names.

    Raises:
        ValueError: naming the array, if classes are numbered otherwise or training lacks one.
    """
    if any(label.ndim != 1 for label in labels.values()):
        return dict(labels), None
    if all(map(_is_text, labels.values())):
        return _texts_as_classes(labels, names)
    if not all(label.dtype.kind in "iu" for label in labels.values()):
        return dict(labels), None
    train, *_ = labels
    if names is None:
        _check_numbers(train, labels[train])
    highest = max((int(label.max()) for label in labels.values() if label.size), default=0)
    count = len(names) if names is not None else 1 + highest
    numbers = {
        name: class_labels(label, count, where=name, numbers=np.arange(len(label)))
        for name, label in labels.items()
    }
    named = tuple(map(str, range(count) if names is None else names))
    _check_known(numbers, named)
    return numbers, named


def check_class_labels(splits: Splits) -> None:
    """Checks that labels are one whole number for each example, as classification needs them.

    Raises:
        ValueError: with the user's name of the labels, what they are, and what to write instead.
    """
    for dataset in (splits.train, splits.validation, splits.test):
        labels = None if dataset is None else dataset.labels()
        if dataset is None or labels is None or (labels.ndim == 1 and labels.dtype.kind in "iu"):
            continue
        name = dataset.name_of("label")
        raise ValueError(
            f"{name} must be one whole number for each example, the number of its class, got "
            f"{labels.dtype} {list(labels.shape)}{_remedy(name, labels)}"
        )


def _texts_as_classes(
    labels: Mapping[str, np.ndarray], names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
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
            raise ValueError(
                f"{name} holds classes that {train if names is None else 'classes'} lacks: "
                f"{_some(unknown)}{did_you_mean(unknown[0], classes)}"
            )
    found = {
        name: np.array([numbers[text] for text in of_split], np.int32)
        for name, of_split in texts.items()
    }
    _check_known(found, classes)
    return found, classes


def _is_text(label: np.ndarray) -> bool:
    if label.dtype.kind == "O":
        return all(isinstance(text, str | bytes) for text in label)
    return label.dtype.kind in "UST"


def _text(label: str | bytes) -> str:
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else label


def _check_numbers(name: str, label: np.ndarray) -> None:
    """Checks that the classes of the training labels are numbered from 0."""
    present = np.unique(label)
    if not len(present) or present[0] < 0:
        return
    low, high, count = int(present[0]), int(present[-1]), len(present)
    from_zero = f"numpy.unique({name}, return_inverse=True)[1] numbers them from 0 without gaps"
    if low > 0:
        is_shifted = high - low + 1 == count
        remedy = f"subtract {low}" if is_shifted else from_zero
        raise ValueError(
            f"class 0 has no example in {name}, whose {label.dtype} labels are {count} values "
            f"from {low} to {high}: {remedy} (for the other splits as well)"
        )
    if high + 1 > max(len(label), _MOST_CLASSES):
        raise ValueError(
            f"{name} has {count:,} different labels from 0 to {high:,}, which are too few to be "
            f"numbers of {high + 1:,} classes: {from_zero}"
        )


def _check_known(labels: Mapping[str, np.ndarray], classes: Sequence[str]) -> None:
    """Checks that training has an example of each class that other splits have."""
    train, *others = labels
    known = np.bincount(labels[train], minlength=len(classes)) > 0
    for name in others:
        counts = np.bincount(labels[name], minlength=len(classes))
        unknown = np.flatnonzero((counts > 0) & ~known)
        if len(unknown):
            shown = [f"{classes[int(number)]} ({counts[number]:,})" for number in unknown]
            raise ValueError(
                f"{name} holds examples of classes of which {train} has none: {_some(shown)}"
            )


def _remedy(name: str, labels: np.ndarray) -> str:
    """What to write in place of labels that are no numbers of classes."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        whole = "" if labels.dtype.kind in "iu" else ".astype(int)"
        return f"; write {name}[:, 0]{whole}"
    if labels.dtype.kind not in "fbiu":
        return ""
    if labels.ndim == 2 and np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(1) == 1):
        return f", one-hot; write {name}.argmax(1)"
    if labels.ndim != 1:
        return ""
    if labels.dtype.kind == "f" and not np.all(labels == np.rint(labels)):
        place = np.flatnonzero(~(labels == np.rint(labels)))[0]
        return (
            f", with {labels[place]} at example {place}; "
            "other numbers than classes need a task of your own (flaxdl.training.Task)"
        )
    return f"; write {name}.astype(int)"


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
