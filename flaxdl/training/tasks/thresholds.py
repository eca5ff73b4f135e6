"""Decision thresholds for probabilities.

N: examples.
"""

import numpy as np

DEFAULT_THRESHOLD = 0.5


def best_f1_threshold(probabilities: np.ndarray, actual: np.ndarray) -> float:
    """Returns the threshold with the highest F1 score; probabilities at or above it are positive.

    It is halfway between two neighboring probabilities. Of several with the same score, the one
    nearest to 0.5 is returned; without positive examples, or if a probability is NaN, 0.5.

    Args:
        probabilities: predicted probabilities, float32[N].
        actual: True for positive examples, bool[N].
    """
    if not np.any(actual) or np.isnan(probabilities).any():
        return DEFAULT_THRESHOLD
    values, place = np.unique(probabilities, return_inverse=True)  # ascending
    predicted, correct = (  # number of examples at or above each value
        np.cumsum(np.bincount(place, weights)[::-1])[::-1] for weights in (None, actual)
    )
    f1 = 2 * correct / (predicted + np.sum(actual))  # one division, so ties are exact
    lower = np.concatenate([np.zeros(1, values.dtype), values[:-1]])
    middle = lower + (values - lower) / 2
    middle = np.where(middle > lower, middle, values)[f1 == np.max(f1)]
    threshold = middle[np.argmin(np.abs(middle - DEFAULT_THRESHOLD))]
    # Probabilities are 0 or 1 only by rounding.
    limits = np.finfo(values.dtype)
    return float(np.clip(threshold, limits.tiny, 1 - limits.epsneg))
