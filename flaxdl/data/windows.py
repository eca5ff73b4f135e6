"""Windows of time series for forecasting: a context, and the horizon that follows it.

N: number of windows, n: number of requested windows, T: steps, C: series.
"""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.dataset import Dataset
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowSizes:
    """Sizes of windows, in steps."""

    context: int
    """Number of steps that a forecast is made from."""
    horizon: int
    """Number of steps to forecast."""
    season: int
    """Period of the seasonal naive forecast; 1 for the last value."""

    def __post_init__(self):
        for name in ("context", "horizon", "season"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.season > self.context:
            raise UserError(
                f"season must be at most context = {self.context}, so that the context contains "
                f"the seasonal naive forecast, got {self.season}"
            )


class Windows(Dataset):
    """Dataset of windows, cut from the values on access.

    Its fields are `inputs` [N, context, C]; `label` [N, horizon, C]; `naive` [N, horizon, C], the
    seasonal naive forecast, which repeats the last season of the context; and `naive_error` [N, C],
    the error of this forecast one step ahead in the training part, by which MASE divides.

    Args:
        values: values of one split, float64[T, C]; NaN where missing.
        sizes: sizes of the windows.
        naive_error: mean absolute error [C], see `naive_error`.
    """

    in_memory = True

    def __init__(self, values: np.ndarray, sizes: WindowSizes, naive_error: np.ndarray):
        self._values = values
        self._sizes = sizes
        self._naive_error = naive_error
        steps = sizes.context + sizes.horizon
        complete = np.isfinite(values).all(1)
        counts = np.concatenate([[0], np.cumsum(complete)])
        self._starts = np.flatnonzero(counts[steps:] - counts[:-steps] == steps)

    def __len__(self) -> int:
        return len(self._starts)

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of the values and the sizes."""
        sizes = np.array([self._sizes.context, self._sizes.horizon, self._sizes.season])
        return fingerprint.of_arrays({"values": self._values, "sizes": sizes})

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Cuts the windows at `indices` (int[n])."""
        context, horizon = self._sizes.context, self._sizes.horizon
        rows = self._starts[indices][:, None] + np.arange(context + horizon)
        values = self._values[rows]  # [n, context + horizon, C]
        repeated = context - self._sizes.season + np.arange(horizon) % self._sizes.season
        return {
            "inputs": values[:, :context],
            "label": values[:, context:],
            "naive": values[:, repeated],
            "naive_error": np.tile(self._naive_error, (len(rows), 1)),
        }

    def labels(self) -> None:
        """Returns None, since labels are not classes."""


def split_windows(
    values: np.ndarray, sizes: WindowSizes, *, validation: float, test: float, name: str
) -> dict[str, Windows]:
    """Cuts a series into a training, a validation and a test part, and each part into windows.

    The parts follow each other in time, and every window lies within one part, context included.
    Windows with missing values are left out.

    Args:
        values: values, float64[T, C]; NaN where missing.
        sizes: sizes of the windows.
        validation: fraction of the steps of the validation part; 0 for none.
        test: fraction of the steps of the test part, the last one; 0 for none.
        name: name of the series, for messages.

    Raises:
        UserError: if a part has no complete window.
    """
    total = len(values)
    ends = [total - round(test * total) - round(validation * total), total - round(test * total)]
    parts = dict(zip(("train", "validation", "test"), np.split(values, ends), strict=True))
    parts = {
        split: part
        for split, part in parts.items()
        if split == "train" or {"validation": validation, "test": test}[split] > 0
    }
    error = naive_error(parts["train"], sizes.season)
    found = {split: Windows(part, sizes, error) for split, part in parts.items()}
    steps = sizes.context + sizes.horizon
    for split, part in parts.items():
        if len(found[split]):
            continue
        needed = f"context {sizes.context} + horizon {sizes.horizon} = {steps}"
        if len(part) < steps:
            raise UserError(
                f"the {split} part of {name} has {len(part):,} of {total:,} steps, fewer than a "
                f"window of {needed}; use smaller windows or other --data.validation-fraction and "
                "--data.test-fraction"
            )
        raise UserError(
            f"the {split} part of {name} has no {needed} consecutive steps without missing values; "
            "rows missing between times count as missing values: for business days, omit the time "
            "column"
        )
    possible = sum(len(part) - steps + 1 for part in parts.values())
    kept = sum(map(len, found.values()))
    if kept < possible:
        missing = int((~np.isfinite(values)).any(1).sum())
        _LOGGER.warning(
            "%s: values are missing in %s of %s steps; %s of %s windows contain them and are left "
            "out", name, f"{missing:,}", f"{total:,}", f"{possible - kept:,}", f"{possible:,}",
        )  # fmt: skip
    return found


def naive_error(train: np.ndarray, season: int) -> np.ndarray:
    """Returns the mean absolute error of the seasonal naive forecast in the training part, [C].

    This is the mean of |y(t) - y(t - season)| over all t for which both values exist; NaN if there
    are none.
    """
    differences = np.abs(train[season:] - train[:-season])
    exists = np.isfinite(differences)
    sums = np.where(exists, differences, 0).sum(0)
    return np.divide(sums, exists.sum(0), out=np.full(len(sums), np.nan), where=exists.any(0))
