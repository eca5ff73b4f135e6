"""Per-class metrics and calibration of a classifier.

N: predictions, K: classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_BINS = 10


@dataclass(frozen=True)
class ClassScore:
    """Metrics of one class; None where they are undefined (0 / 0)."""

    name: str
    examples: int
    """Number of examples of the class."""
    precision: float | None
    """Fraction of the predictions of this class that are correct."""
    recall: float | None
    """Fraction of the examples of this class that are predicted correctly."""
    f1: float | None
    """Harmonic mean of precision and recall."""


@dataclass(frozen=True)
class Calibration:
    """Reliability diagram: mean accuracy and mean confidence in bins of confidence."""

    confidence: np.ndarray  # [bins], mean confidence
    accuracy: np.ndarray  # [bins], fraction of correct predictions
    count: np.ndarray  # [bins], number of predictions
    error: float
    """Expected calibration error: mean of |confidence - accuracy|, weighted by the counts."""


def confusion_matrix(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the counts of true classes (rows) and predicted classes (columns), int[K, K]."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(label, predicted, labels=np.arange(num_classes))


def class_scores(
    label: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> list[ClassScore]:
    """Returns precision, recall and F1 of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    nothing: Any = np.nan
    columns: Any = precision_recall_fscore_support(
        label, predicted, labels=np.arange(len(classes)), zero_division=nothing
    )
    return [
        ClassScore(name, int(examples), *(None if np.isnan(x) else float(x) for x in scores))
        for name, *scores, examples in zip(classes, *columns, strict=True)
    ]


def calibrate(confidence: np.ndarray, is_correct: np.ndarray) -> Calibration:
    """Compares confidence with accuracy in ten bins (Guo et al., "On Calibration", 2017).

    Args:
        confidence: probability of each prediction, float[N].
        is_correct: True for correct predictions, bool[N].
    """
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    nonempty = count > 0
    sums = (np.bincount(bins, weights=x, minlength=_BINS) for x in (confidence, is_correct))
    mean, accuracy = (total[nonempty] / count[nonempty] for total in sums)
    error = float(np.sum(count[nonempty] * np.abs(mean - accuracy)) / len(confidence))
    return Calibration(mean, accuracy, count[nonempty], error)


def most_confused(
    confusion: np.ndarray, classes: Sequence[str], most: int = 10
) -> list[tuple[str, str, int]]:
    """Returns the most frequent confusions, as (true class, predicted class, count)."""
    wrong = confusion - np.diag(np.diag(confusion))
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(classes)) for place in places]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
