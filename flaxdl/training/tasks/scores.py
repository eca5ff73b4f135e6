"""Metrics of classifiers that are not averages of examples.

N: examples, B: examples of a batch, K: classes, or labels that an example may have together.
"""

import math
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError

PER_CLASS = ("precision", "recall", "f1")
"""Metrics of a class, which have names such as `recall/cat`."""
RANKING = ("auroc", "average_precision")
"""Metrics that need the scores of all examples."""
_SHOWN = 10  # classes in a message


def check_extra_metrics(
    names: Sequence[str], allowed: Collection[str], classes: Sequence[str] | None = None
) -> None:
    """Checks names such as `macro_f1` and `recall/cat`.

    Args:
        names: names to check.
        allowed: names of metrics that do not belong to a class.
        classes: names of the classes; None if they are not yet known, and not checked.

    Raises:
        UserError: if a name is unknown, or if it occurs twice.
    """
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"extra_metrics must be a tuple of names, got {names!r}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"extra_metrics must be different, got {', '.join(repeated)} twice")
    for name in names:
        metric, slash, of_class = name.partition("/")
        if not (slash and metric in PER_CLASS) and name not in allowed:
            per_class = ", ".join(f"{metric}/CLASS" for metric in PER_CLASS)
            raise UserError(
                f"extra_metrics must be names out of {', '.join(allowed)}, {per_class}, "
                f"got {name!r}{did_you_mean(name, allowed)}"
            )
        if slash and classes is not None and of_class not in classes:
            more = f" and {len(classes) - _SHOWN:,} more" if len(classes) > _SHOWN else ""
            known = f"are {', '.join(classes[:_SHOWN])}{more}" if classes else "have no names"
            raise UserError(
                f"extra_metrics has {name!r}, but the classes of the data {known}"
                f"{did_you_mean(of_class, classes)}"
            )


def counts_of(predicted: jax.Array, actual: jax.Array, counted: jax.Array) -> jax.Array:
    """Returns the counts of true positives, predictions and examples of each class, int32[3, K].

    Args:
        predicted: True for the predicted classes, bool[B, K].
        actual: True for the classes of the example, bool[B, K].
        counted: False for entries that do not count, bool[B, K] or [B, 1].
    """
    kinds = jnp.stack([predicted & actual, predicted, actual])  # [3, B, K]
    return jnp.sum(kinds & counted, axis=1, dtype=jnp.int32)


def score(name: str, counts: np.ndarray, classes: Sequence[str]) -> float:
    """Returns a metric, given the counts [3, K]; NaN where it is not defined (0 / 0).

    - `precision/C`, `recall/C` and `f1/C` are those of class C.
    - `macro_f1` is the mean F1 score of the classes that occur in labels or predictions.
    - `balanced_accuracy` is the mean recall of the classes that occur in labels.
    - `micro_f1` is the F1 score of all decisions together.
    """
    correct, predicted, actual = counts.astype(np.float64)
    metric, _, of_class = name.partition("/")
    if metric == "micro_f1":
        return float(_ratio(2 * correct.sum(), (predicted + actual).sum()))
    found = {
        "precision": _ratio(correct, predicted),
        "recall": _ratio(correct, actual),
        "f1": _ratio(2 * correct, predicted + actual),
    }
    if of_class:
        return float(found[metric][list(classes).index(of_class)])
    return _mean(found[{"macro_f1": "f1", "balanced_accuracy": "recall"}[metric]])


def ranking_score(name: str, scores: np.ndarray, actual: np.ndarray, counted: np.ndarray) -> float:
    """Returns the mean over classes of a metric of the ranking by a class's score.

    A class without positive or without negative examples has no area under the ROC curve, one
    without positive examples no average precision, and is left out. Ties are those of scikit-learn.
    The mean is NaN if a score of another class is not finite.

    Args:
        name: `auroc`, the area under the ROC curve, or `average_precision`.
        scores: score of each class, float[N, K]; higher for more likely classes.
        actual: True for the classes of the example, bool[N, K].
        counted: False for entries that do not count, bool[N, K].
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    function = {"auroc": roc_auc_score, "average_precision": average_precision_score}[name]
    values = []
    for of_class, is_class, counts in zip(scores.T, actual.T, counted.T, strict=True):
        positives, total = np.sum(is_class & counts), np.sum(counts)
        if positives and (positives < total or name == "average_precision"):
            if not np.isfinite(of_class[counts]).all():
                return math.nan
            values.append(float(function(is_class[counts], of_class[counts])))
    return _mean(np.array(values))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.divide(numerator, denominator)


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if defined.size else math.nan
