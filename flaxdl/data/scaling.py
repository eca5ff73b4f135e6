"""Scaling of time series by the mean and the standard deviation of the training part.

N: number of windows, n: number of requested windows, C: series.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from flaxdl.data.dataset import Dataset
from flaxdl.data.table_files import SUFFIXES
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write

_FILE_NAME = "scaling.json"
_CHUNK = 4096  # windows
_SCALED = ("inputs", "label", "naive")


@dataclass(frozen=True)
class Scaling(Transform):
    """Standardization of series to forecast; `fit` returns a `FittedScaling`.

    Each series is standardized with the mean and the standard deviation of its values in the
    training windows. Examples get a field `scale`, from which the task `Forecasting` computes
    metrics in the series' own units.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def fit(self, train: Dataset) -> "FittedScaling":
        """Computes the statistics of the training windows.

        Raises:
            UserError: if the examples are not windows of series.
        """
        total, squares, count, horizon = 0.0, 0.0, 0, 0
        center = None  # near the mean, so that squares lose no precision
        for start in range(0, len(train), _CHUNK):
            batch = train.gather(np.arange(start, min(start + _CHUNK, len(train))))
            if batch["inputs"].ndim != 3 or batch.get("label", np.zeros(0)).ndim != 3:
                raise UserError(
                    "Scaling needs windows with inputs [N, context, C] and label [N, horizon, C], "
                    f"got {', '.join(f'{name} {list(x.shape)}' for name, x in batch.items())}"
                )
            windows = np.concatenate([batch["inputs"], batch["label"]], axis=1, dtype=np.float64)
            center = windows.mean((0, 1)) if center is None else center
            total = total + (windows - center).sum((0, 1))
            squares = squares + np.square(windows - center).sum((0, 1))
            count += windows.shape[0] * windows.shape[1]
            horizon = batch["label"].shape[1]
        assert center is not None
        offset = np.asarray(total / count)
        std = np.sqrt(np.maximum(squares / count - np.square(offset), 0))
        mean = center + offset
        std = np.where(std <= 1e-12 * np.abs(mean), 1, std)  # constant, up to rounding
        return FittedScaling(mean=tuple(mean.tolist()), std=tuple(std.tolist()), horizon=horizon)

    def restore(self, workdir: Path) -> "FittedScaling":
        """Reads the statistics in `workdir`."""
        path = workdir / _FILE_NAME
        try:
            stored = json.loads(path.read_text())
            return FittedScaling(
                mean=tuple(stored["mean"]), std=tuple(stored["std"]), horizon=stored["horizon"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class FittedScaling(Scaling):
    """A `Scaling` transform with the statistics of a training split."""

    mean: tuple[float, ...] = field(kw_only=True, repr=False, compare=False)
    """Mean of each series."""
    std: tuple[float, ...] = field(kw_only=True, repr=False, compare=False)
    """Standard deviation of each series; 1 for constant series."""
    horizon: int = field(kw_only=True, compare=False)
    """Number of steps to forecast."""

    def apply(self, dataset: Dataset) -> Dataset:
        """Scales windows when they are fetched."""
        return _ScaledWindows(dataset, self)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Returns values [..., C] in standard deviations from the mean, as float32."""
        return ((values - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def unscaled(self, values: np.ndarray) -> np.ndarray:
        """Returns values [..., C] in the series' own units, as float64: the inverse of `scaled`."""
        return np.asarray(values, np.float64) * np.array(self.std) + np.array(self.mean)

    def save(self, workdir: Path) -> None:
        """Writes the statistics."""
        stored = {"mean": self.mean, "std": self.std, "horizon": self.horizon}
        with atomic_write(workdir / _FILE_NAME) as unfinished:
            unfinished.write_text(json.dumps(stored) + "\n")


class _ScaledWindows(Dataset):
    """Windows in standard deviations from the mean, with a field `scale` [N, C]."""

    def __init__(self, windows: Dataset, scaling: FittedScaling):
        self.in_memory = windows.in_memory
        self._windows = windows
        self._scaling = scaling

    def __len__(self) -> int:
        return len(self._windows)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches and scales the windows at `indices` (int[n])."""
        batch = self._windows.gather(indices)
        found = {
            name: self._scaling.scaled(array) if name in _SCALED else array.astype(np.float32)
            for name, array in batch.items()
        }
        scale = np.tile(np.array(self._scaling.std, np.float32), (len(indices), 1))
        return found | {"scale": scale}

    def labels(self) -> None:
        """Returns None, since labels are not classes."""

    def name_of(self, field: str) -> str:
        """Returns the user-facing name of a field, for messages."""
        return self._windows.name_of(field)
