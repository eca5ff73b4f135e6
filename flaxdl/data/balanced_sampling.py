"""Balanced sampling: drawing the examples of all classes equally often."""

import numpy as np

from flaxdl.data.dataset import Dataset
from flaxdl.data.shuffling import CACHED_GROUPS
from flaxdl.errors import UserError


def balanced_labels(train: Dataset) -> np.ndarray:
    """Returns the class of each training example, int[N].

    Raises:
        UserError: if labels are not classes, or if getting them requires reading every example.
    """
    groups = train.read_groups()
    count = 0 if groups is None else len(np.unique(groups))
    if count > CACHED_GROUPS:
        raise UserError(
            f"balanced_sampling draws examples one by one, but {train.name_of('inputs')} are read "
            f"in {count} groups, at most {CACHED_GROUPS} of which stay in memory; use "
            "task.class_weights instead"
        )
    labels = train.labels()
    if labels is None:
        raise UserError(
            "balanced_sampling needs labels that are known without reading every example, as those "
            "of image folders, tables and arrays in memory"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            "balanced_sampling needs one integer class number per example as label, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return labels


def balanced_order(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `count` examples in random order, the same number (to within one) of each class.

    The examples of a class are drawn equally often (to within one): those of a frequent class at
    most once, those of a rare class several times.

    Args:
        labels: class of each example, int[N]; classes without examples are ignored.
        count: number of examples to draw.
        rng: random number generator.

    Returns:
        Indices of the drawn examples, int[count].
    """
    sizes = np.unique(labels, return_counts=True)[1]
    of_classes = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    numbers = np.full(len(sizes), count // len(sizes))
    numbers[rng.permutation(len(sizes))[: count % len(sizes)]] += 1
    drawn = [
        np.concatenate([rng.permutation(members) for _ in range(number // len(members) + 1)])
        for number, members in zip(numbers, of_classes, strict=True)
    ]
    parts = [of_class[:number] for of_class, number in zip(drawn, numbers, strict=True)]
    return rng.permutation(np.concatenate(parts))
