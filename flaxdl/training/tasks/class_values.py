"""Numbers by class name, such as weights in the training loss and decision thresholds.

N: training examples, K: classes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError

ClassValues = tuple[tuple[str, float], ...]
"""Pairs of class name and number."""
_SHOWN = 10  # classes


def check_values(field: str, values: Any, *, instead: str, below: float = math.inf) -> None:
    """Checks pairs of class name and number.

    Args:
        field: name of the field, for messages.
        values: value of the field.
        instead: what the field can be instead of pairs, for messages.
        below: upper limit of the numbers.

    Raises:
        UserError: if they are not pairs, if a name occurs twice, or if a number is not between 0
            and `below`.
    """
    what = field.removeprefix("class_").removesuffix("s")
    if not isinstance(values, tuple) or not all(map(_is_pair, values)):
        raise UserError(
            f"{field} must be {instead}, or a tuple of pairs of class name and {what}, such as "
            f"(('cat', 0.5), ('dog', 0.8)), got {values!r:.200}"
        )
    wrong = [f"{value} for {name!r}" for name, value in values if not 0 < value < below]
    if wrong:
        range_ = "positive and finite" if below == math.inf else f"between 0 and {below:g}"
        raise UserError(f"{field} must be {range_}, got {_some(wrong)}")
    counts = Counter(name for name, _ in values)
    repeated = [repr(name) for name, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"{field} must name each class once, got {_some(repeated)} more than once")


def balanced_weights(labels: np.ndarray | None, classes: Sequence[str]) -> ClassValues:
    """Returns N / (K * count) for each class, as scikit-learn's `compute_class_weight`.

    All classes then have the same total weight, and the mean weight of an example is 1.

    Args:
        labels: class numbers of the training split, int[N]; None if unknown.
        classes: names of the classes.

    Raises:
        UserError: if the labels are unknown, or if a class has no training example.
    """
    counts = np.bincount(_known("class_weights", labels), minlength=len(classes))
    _check_counts("class_weights", "training examples of each class", counts, classes)
    weights = counts.sum() / (len(classes) * counts)
    return tuple(zip(classes, weights.tolist(), strict=True))


def balanced_pos_weight(labels: np.ndarray | None, classes: Sequence[str]) -> ClassValues:
    """Returns negatives / positives for each class, so that both have the same total weight.

    Args:
        labels: 1 for the classes of an example, 0 for others, NaN if unknown, float[N, K] of the
            training split; None if getting them requires reading every example.
        classes: names of the classes.

    Raises:
        UserError: if the labels are unknown, or if a class has only positives or only negatives.
    """
    labels = _known("pos_weight", labels)
    positives, negatives = np.sum(labels == 1, axis=0), np.sum(labels == 0, axis=0)
    for kind, counts in (("positive", positives), ("negative", negatives)):
        _check_counts("pos_weight", f"{kind} training examples of each class", counts, classes)
    return tuple(zip(classes, (negatives / positives).tolist(), strict=True))


def in_class_order(field: str, values: ClassValues, classes: Sequence[str]) -> ClassValues:
    """Returns the pairs in the order of the classes.

    Raises:
        UserError: if a class has no number, or if a name is not that of a class.
    """
    known = dict(values)
    unknown = [name for name in known if name not in classes]
    if unknown:
        raise UserError(
            f"{field} names {_some(unknown)}, but the classes of the data are "
            f"{_some(classes)}{did_you_mean(unknown[0], classes)}"
        )
    missing = [name for name in classes if name not in known]
    if missing:
        raise UserError(f"{field} must name all {len(classes)} classes, lacks {_some(missing)}")
    return tuple((name, known[name]) for name in classes)


def as_array(field: str, values: Any, outputs: jax.Array) -> jax.Array:
    """Returns the numbers, [K], that `fit` of a task has put into the order of the classes.

    Their dtype is that of the outputs [..., K], at least float32.

    Raises:
        UserError: if there is not one pair per output, such as before `fit`.
    """
    if not isinstance(values, tuple) or len(values) != outputs.shape[-1]:
        raise UserError(
            f"{field} must be {outputs.shape[-1]} pairs of class name and number, got "
            f"{values!r:.200}; call fit on the task first"
        )
    dtype = jnp.promote_types(outputs.dtype, jnp.float32)
    return jnp.array([value for _, value in values], dtype)


def _known(field: str, labels: np.ndarray | None) -> np.ndarray:
    if labels is None:
        raise UserError(
            f"{field} 'balanced' needs labels that are known without reading every example; "
            "give weights by class name instead"
        )
    return labels


def _check_counts(field: str, what: str, counts: np.ndarray, classes: Sequence[str]) -> None:
    absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if absent:
        raise UserError(
            f"{field} 'balanced' needs {what}, but there are none of {_some(absent)}; "
            "give weights by class name instead"
        )


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
