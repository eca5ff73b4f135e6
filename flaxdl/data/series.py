"""Series of numbers: standardization per channel, and padding to one length.

N: number of series, T: steps, C: channels.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flaxdl.data.dataset import ArrayDataset, Dataset
from flaxdl.data.series_files import read_series_file
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write

_LOGGER = logging.getLogger(__name__)
_FILE_NAME = "series.json"


@dataclass(frozen=True)
class Series(Transform):
    """Preprocessing of series [T, C] for `CNN1d` and `SimpleRNN`; `fit` returns a `FittedSeries`.

    Examples are `inputs`, [N, T, C] or [N, T] (one channel), and optionally `lengths`, int[N], the
    number of steps of each series without its padding. Every channel is standardized with the mean
    and the standard deviation of all steps of the training split. Series with more steps than
    `max_length` are truncated; shorter ones are padded with zeros after standardization, and the
    model gets their `lengths`. Without `lengths` in the data, and if no series is padded, the model
    gets none.

    For prediction, a file has one series: .npy files an array [T, C] or [T], .csv files a row per
    step and a column per channel, with or without a header. The first row is a header if none of
    its cells is a number. A header of numbers, such as `0,1` from pandas for columns without names,
    counts as a step, so write such files without it (`to_csv(header=False, index=False)`).
    """

    file_suffixes: ClassVar[tuple[str, ...]] = (".npy", ".csv")

    max_length: int | None = None
    """Maximum number of steps; by default, that of the longest series in the training split."""
    standardize: bool = True
    """Subtract the mean of each channel and divide by its standard deviation."""

    def __post_init__(self):
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length must be at least 1, got {self.max_length}")

    def fit(self, train: Dataset) -> "FittedSeries":
        """Computes the statistics of the training split.

        Raises:
            UserError: if the examples are not series, or their lengths are out of range.
        """
        series, lengths = _series_of(train)
        length = self.max_length or int(lengths.max())
        real = series[np.arange(series.shape[1]) < np.minimum(lengths, length)[:, None]]  # [n, C]
        mean, std = np.zeros(real.shape[1]), np.ones(real.shape[1])
        if self.standardize:
            mean, std = real.mean(0, dtype=np.float64), real.std(0, dtype=np.float64)
            std[std <= 1e-12 * np.abs(mean)] = 1  # constant, up to rounding
        return self._fitted(
            length=length,
            has_lengths="lengths" in train.arrays() or bool((lengths < length).any()),
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
        )

    def restore(self, workdir: Path) -> "FittedSeries":
        """Reads the statistics in `workdir`."""
        path = workdir / _FILE_NAME
        try:
            stored = json.loads(path.read_text())
            return self._fitted(
                length=stored["length"],
                has_lengths=stored["has_lengths"],
                mean=tuple(stored["mean"]),
                std=tuple(stored["std"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    def _fitted(self, **statistics: Any) -> "FittedSeries":
        settings = {setting.name: getattr(self, setting.name) for setting in fields(Series)}
        return FittedSeries(**settings, **statistics)


@dataclass(frozen=True)
class FittedSeries(Series):
    """A `Series` transform with the statistics of a training split."""

    length: int = field(kw_only=True, compare=False)
    """Number of steps of all inputs, including padding."""
    has_lengths: bool = field(kw_only=True, compare=False)
    """True if the model gets the lengths of the series."""
    mean: tuple[float, ...] = field(kw_only=True, repr=False, compare=False)
    """Mean of each channel."""
    std: tuple[float, ...] = field(kw_only=True, repr=False, compare=False)
    """Standard deviation of each channel; 1 for constant channels."""

    def apply(self, dataset: Dataset) -> Dataset:
        """Standardizes, truncates and pads all series.

        Raises:
            UserError: if the examples are not series with the channels of the training split, or
                are shorter than those of a training split without lengths.
        """
        series, lengths = _series_of(dataset)
        arrays = {k: x for k, x in dataset.arrays().items() if k not in ("inputs", "lengths")}
        names = {name: dataset.name_of(name) for name in ("inputs", "label")}
        return ArrayDataset(self._encode(series, lengths, names["inputs"]) | arrays, names)

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Reads one series from each .npy or .csv file."""
        rows = []
        for item in items:
            series, lengths = pad([read_series_file(item)])
            rows.append(self._encode(series, lengths, item))
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def save(self, workdir: Path) -> None:
        """Writes the statistics."""
        values = {
            "length": self.length,
            "has_lengths": self.has_lengths,
            "mean": self.mean,
            "std": self.std,
        }
        with atomic_write(workdir / _FILE_NAME) as unfinished:
            unfinished.write_text(json.dumps(values) + "\n")

    def _encode(self, series: np.ndarray, lengths: np.ndarray, name: str) -> dict[str, np.ndarray]:
        """Returns the model inputs of series [N, T, C]."""
        count, steps, channels = series.shape
        if channels != len(self.mean):
            raise UserError(
                f"{name} must have {len(self.mean)} channels, as in training, got {channels}"
            )
        if not self.has_lengths and (lengths < self.length).any():
            raise UserError(
                f"{name} must have at least {self.length} steps, as all series in training, "
                f"got {lengths.min()}"
            )
        cut = int((lengths > self.length).sum())
        if cut:
            _LOGGER.warning(
                "%s: %s of %s series are longer than %d steps and are truncated",
                name, f"{cut:,}", f"{count:,}", self.length,
            )  # fmt: skip
        inputs = np.zeros((count, self.length, channels), np.float32)
        shared = min(steps, self.length)
        inputs[:, :shared] = (series[:, :shared] - np.array(self.mean)) / np.array(self.std)
        lengths = np.minimum(lengths, self.length)
        inputs[np.arange(self.length) >= lengths[:, None]] = 0
        return {"inputs": inputs} | ({"lengths": lengths} if self.has_lengths else {})


def pad(series: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pads arrays [T, ...] that differ only in T with zeros.

    Returns:
        The padded arrays [N, T, ...], and their lengths, int32[N].
    """
    lengths = np.array([len(one) for one in series], np.int32)
    first = series[0]
    padded = np.zeros((len(series), lengths.max(), *first.shape[1:]), np.result_type(*series))
    for row, one in zip(padded, series, strict=True):
        row[: len(one)] = one
    return padded, lengths


def _series_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the series [N, T, C] and the lengths int32[N] of a dataset, after checks."""
    arrays, name = dataset.arrays(), dataset.name_of("inputs")
    series = arrays["inputs"]
    if series.ndim == 2:
        series = series[:, :, None]
    if series.ndim != 3 or not series.size or series.dtype.kind not in "biuf":
        raise UserError(
            f"{name} must be series of numbers, [N, T, C] or [N, T], "
            f"got {series.dtype} {list(series.shape)}"
        )
    steps = series.shape[1]
    lengths: Any = arrays.get("lengths", np.full(len(series), steps))
    if lengths.shape != (len(series),) or lengths.dtype.kind not in "iu":
        raise UserError(
            f"{dataset.name_of('lengths')} must be one integer per series, "
            f"got {lengths.dtype} {list(lengths.shape)}"
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > steps))
    if len(wrong):
        raise UserError(
            f"{dataset.name_of('lengths')} must be from 1 to {steps}, the number of steps, "
            f"got {lengths[wrong[0]]} at example {wrong[0]}"
        )
    return series, lengths.astype(np.int32)
