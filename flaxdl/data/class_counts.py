"""Example counts per class and split, with warnings about missing classes and small splits."""

import logging

import numpy as np

from flaxdl.data.source import Splits

_LOGGER = logging.getLogger(__name__)
_FEW_EXAMPLES = 100  # with fewer, accuracy changes in steps above 1%
_SHOWN_CLASSES = 10
_SHOWN_LETTERS = 40


def class_counts(splits: Splits) -> dict[str, np.ndarray]:
    """Returns the number of examples per class, int[K], for each split with known labels."""
    if splits.classes is None:
        return {}
    datasets = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    labels = {name: dataset.labels() for name, dataset in datasets.items() if dataset is not None}
    return {
        name: np.bincount(label, minlength=len(splits.classes))
        for name, label in labels.items()
        if label is not None and label.ndim == 1 and label.dtype.kind in "iu"
    }


def describe(splits: Splits) -> str | None:
    """Returns a line such as `train / validation by class: cat 80 / 9, dog 120 / 14`.

    With more than 10 classes, the line contains only the smallest and the largest count. Returns
    None if labels are not classes, or if getting them requires reading every example.
    """
    counts = class_counts(splits)
    if not counts:
        return None
    names = " / ".join(counts)
    if len(splits.classes or ()) > _SHOWN_CLASSES:
        ranges = [_range(int(of_split.min()), int(of_split.max())) for of_split in counts.values()]
        return f"{names} for each of {len(splits.classes or ()):,} classes: {' / '.join(ranges)}"
    rows = zip(splits.classes or (), *counts.values(), strict=True)
    return f"{names} by class: " + ", ".join(
        f"{_shown(name)} {' / '.join(f'{number:,}' for number in numbers)}"
        for name, *numbers in rows
    )


def warn_about_few_examples(splits: Splits, *, by_class: bool) -> None:
    """Warns about missing classes and about a small validation split.

    Args:
        splits: the datasets to check.
        by_class: True for classification, where each class needs examples.
    """
    counts = class_counts(splits) if by_class else {}
    classes = splits.classes or ()
    if "train" in counts and (missing := _missing(classes, counts["train"] == 0)):
        present = np.flatnonzero(counts["train"])
        _LOGGER.warning(
            "%s have no training examples: %s has %d distinct values from %d to %d",
            missing, splits.train.name_of("label"), len(present), present[0], present[-1],
        )  # fmt: skip
    if splits.validation is None:
        return
    faults = []
    if (examples := len(splits.validation)) < _FEW_EXAMPLES:
        faults.append(f"has only {examples} example{'' if examples == 1 else 's'}")
    if "validation" in counts and "train" in counts:
        missing = _missing(classes, (counts["validation"] == 0) & (counts["train"] > 0))
        faults += [f"lacks {missing}"] if missing else []
    if faults:
        _LOGGER.warning(
            "the validation split %s, so model selection will be noisy; a larger one, such as by "
            "--data.validation-fraction, would help",
            " and ".join(faults),
        )


def _missing(classes: tuple[str, ...], is_missing: np.ndarray) -> str:
    """Returns text such as `2 of 5 classes (cat, dog)`, or "" if no class is missing."""
    names = [classes[number] for number in np.flatnonzero(is_missing)]
    if not names:
        return ""
    more = [f"{len(names) - _SHOWN_CLASSES:,} more"] * (len(names) > _SHOWN_CLASSES)
    shown = ", ".join([*map(_shown, names[:_SHOWN_CLASSES]), *more])
    return f"{len(names):,} of {len(classes):,} classes ({shown})"


def _range(low: int, high: int) -> str:
    return f"{low:,} to {high:,}" if low < high else f"{low:,}"


def _shown(name: str) -> str:
    """Returns a name on one line, truncated if it is long."""
    name = " ".join(name.split())
    return name if len(name) <= _SHOWN_LETTERS else f"{name[: _SHOWN_LETTERS - 3]}..."
