"""What a classifier's answers are worth, class by class, and whether its probabilities are.

N: answers, K: classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_BINS = 10


@dataclass(frozen=True)
class ClassScore:
    """How one class fares; None where there is nothing to divide by."""

    name: str
    examples: int
    """How many examples are of it."""
    precision: float | None
    """Share of the answers with this class that are right."""
    recall: float | None
    """Share of the examples of this class that are found."""
    f1: float | None
    """The harmonic mean of the two."""


@dataclass(frozen=True)
class Calibration:
    """Whether answers are right as often as their probability says, by bins of probability."""

    confidence: np.ndarray  # [bins], the mean probability
    accuracy: np.ndarray  # [bins], the share that is right
    count: np.ndarray  # [bins], how many answers there are
    error: float
    """The mean distance of the two, weighted by the counts: the expected calibration error."""


def confusion_matrix(label: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class (row) was answered with each class (column), int[K, K]."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(label, predicted, labels=np.arange(num_classes))


def class_scores(
    label: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> list[ClassScore]:
    """Precision, recall and F1 of each class."""
    from sklearn.metrics import precision_recall_fscore_support

    nothing: Any = np.nan
    columns: Any = precision_recall_fscore_support(
        label, predicted, labels=np.arange(len(classes)), zero_division=nothing
    )
    return [
        ClassScore(name, int(examples), *(None if np.isnan(x) else float(x) for x in scores))
        for name, *scores, examples in zip(classes, *columns, strict=True)
    ]


def calibrate(confidence: np.ndarray, is_right: np.ndarray) -> Calibration:
    """Compares probabilities with outcomes, in ten bins (Guo et al., "On Calibration", 2017).

    Args:
        confidence: the probabilities of the answers, float[N].
        is_right: whether they are right, bool[N].
    """
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    count = np.bincount(bins, minlength=_BINS)
    there = count > 0
    sums = (np.bincount(bins, weights=x, minlength=_BINS) for x in (confidence, is_right))
    mean, share = (total[there] / count[there] for total in sums)
    error = float(np.sum(count[there] * np.abs(mean - share)) / len(confidence))
    return Calibration(mean, share, count[there], error)


def most_confused(
    confusion: np.ndarray, classes: Sequence[str], most: int = 10
) -> list[tuple[str, str, int]]:
    """The pairs that are taken for each other most often: class, answer, how often."""
    wrong = confusion - np.diag(np.diag(confusion))
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(classes)) for place in places]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]
