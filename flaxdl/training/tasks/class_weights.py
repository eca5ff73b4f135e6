"""Weights of classes in the training loss, by class name.

N: training examples, K: classes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError

NamedWeights = tuple[tuple[str, float], ...]
"""Pairs of class name and weight."""
_SHOWN = 10  # classes


def check_weights(weights: Any) -> None:
    """Checks pairs of class name and weight.

    Raises:
        UserError: if they are not pairs, if a name occurs twice, or if a weight is not positive and
            finite.
    """
    if not isinstance(weights, tuple) or not all(map(_is_pair, weights)):
        raise UserError(
            "class_weights must be 'balanced', or a tuple of pairs of class name and weight, such "
            f"as (('cat', 1.0), ('dog', 2.5)), got {weights!r:.200}"
        )
    wrong = [f"{weight} for {name!r}" for name, weight in weights if not 0 < weight < math.inf]
    if wrong:
        raise UserError(f"class_weights must be positive and finite, got {_some(wrong)}")
    counts = Counter(name for name, _ in weights)
    repeated = [repr(name) for name, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f"class_weights must name each class once, got {_some(repeated)} more than once"
        )


def balanced(labels: np.ndarray | None, classes: Sequence[str]) -> NamedWeights:
    """Returns N / (K * count) for each class, as scikit-learn's `compute_class_weight`.

    All classes then have the same total weight, and the mean weight of an example is 1.

    Args:
        labels: class numbers of the training split, int[N]; None if unknown.
        classes: names of the classes.

    Raises:
        UserError: if the labels are unknown, or if a class has no training example.
    """
    if labels is None:
        raise UserError(
            "class_weights 'balanced' needs labels that are known without reading every example; "
            "give weights by class name instead"
        )
    counts = np.bincount(labels, minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if absent:
        raise UserError(
            "class_weights 'balanced' needs training examples of each class, but there are none of "
            f"{_some(absent)}; give weights by class name instead"
        )
    weights = counts.sum() / (len(classes) * counts)
    return tuple(zip(classes, weights.tolist(), strict=True))


def in_class_order(weights: NamedWeights, classes: Sequence[str]) -> NamedWeights:
    """Returns the pairs in the order of the classes.

    Raises:
        UserError: if a class has no weight, or if a name is not that of a class.
    """
    known = dict(weights)
    unknown = [name for name in known if name not in classes]
    if unknown:
        raise UserError(
            f"class_weights names {_some(unknown)}, but the classes of the data are "
            f"{_some(classes)}{did_you_mean(unknown[0], classes)}"
        )
    missing = [name for name in classes if name not in known]
    if missing:
        raise UserError(
            f"class_weights must name all {len(classes)} classes, lacks {_some(missing)}"
        )
    return tuple((name, known[name]) for name in classes)


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], int | float | np.number)
        and not isinstance(pair[1], bool)
    )


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN:,} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
