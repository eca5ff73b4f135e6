"""Random order of examples that are read in groups, such as the row groups of Parquet files."""

import numpy as np

WINDOW_GROUPS = 16
"""Number of groups whose examples are mixed."""
CACHED_GROUPS = 2 * WINDOW_GROUPS
"""Number of groups to keep in memory: batches that are prepared together may be of two windows."""


def windowed_order(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a random order that reads each group once, and few groups at the same time.

    The groups are shuffled, and the examples are shuffled within windows of 16 groups.

    Args:
        groups: number of the group of each example, int[N].
        rng: random number generator.

    Returns:
        Permutation of 0..N - 1.
    """
    sizes = np.unique(groups, return_counts=True)[1]
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    order = rng.permutation(len(members))
    mixed = []
    for start in range(0, len(order), WINDOW_GROUPS):
        window = order[start : start + WINDOW_GROUPS]
        mixed.append(rng.permutation(np.concatenate([members[group] for group in window])))
    return np.concatenate(mixed)
