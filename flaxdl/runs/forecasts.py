"""Forecasts of a trained run: the continuation of a series in a file."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxdl.data import SeriesSource
from flaxdl.data.scaling import FittedScaling
from flaxdl.data.series_table import TimeSeries
from flaxdl.errors import UserError
from flaxdl.runs.items import SkippedItem, expand_items
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.distributed.mesh import replicated


@dataclass(frozen=True)
class Forecast:
    """Continuation of the series in one file."""

    item: str
    """File name."""
    times: list[str] | None
    """Times of the forecast, which continue those of the file; None without a time column."""
    values: dict[str, list[float]]
    """Forecast values in the series' own units, by column."""
    time_column: str | None = None
    """Name of the time column."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one dict per step, with the columns of the file."""
        steps = zip(*self.values.values(), strict=True)
        rows = [dict(zip(self.values, step, strict=True)) for step in steps]
        if self.times is None or self.time_column is None:
            return rows
        return [{self.time_column: t} | row for t, row in zip(self.times, rows, strict=True)]


def forecast_each(run: RestoredRun, items: Sequence[str]) -> Iterator[Forecast | SkippedItem]:
    """Yields the continuation of the series in each file, or the reason why there is none.

    The last `context` rows of a file determine the forecast.

    Args:
        run: restored run of the task `Forecasting`.
        items: tables with the columns of the run's data, or folders of such tables.

    Raises:
        UserError: if the run has no source of series, or no scaling.
    """
    forecast, source, horizon = make_forecaster(run), _source(run), _scaling(run).horizon
    for item in expand_items(items, run.transform):
        if isinstance(item, SkippedItem):
            yield item
            continue
        try:
            series = source.read(item)
            context = _last_steps(series, source.context, item)
            times = None if series.times is None else series.times.after(horizon)
        except ValueError as error:
            yield SkippedItem(item, str(error))
            continue
        values = forecast({"inputs": context})[0]  # [S, C]
        yield Forecast(
            item,
            times,
            dict(zip(series.columns, values.T.tolist(), strict=True)),
            source.time_column,
        )


def make_forecaster(run: RestoredRun) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Returns a function from contexts in the series' own units to forecasts in these units.

    It maps a batch with `inputs` [B, T, C] to float64[B, S, C].

    Raises:
        UserError: if the run's transform is not `Scaling`.
    """
    scaling = _scaling(run)

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def outputs_of(state: Any, batch: Any) -> jax.Array:
        return run.inference.predict(state, batch)

    def forecast(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        inputs = scaling.scaled(batch["inputs"])
        rows = np.minimum(np.arange(run.inference_size(len(inputs))), len(inputs) - 1)
        outputs = outputs_of(run.state, run.put({"inputs": inputs[rows]}))
        return scaling.unscaled(np.asarray(outputs, np.float64))[: len(inputs)]

    return forecast


def read_context(run: RestoredRun, item: str) -> dict[str, np.ndarray]:
    """Returns the scaled end of the series in a file as the model's inputs, [1, T, C].

    Raises:
        UserError: if the file cannot be read, or if its last steps are too few or incomplete.
    """
    source = _source(run)
    context = _last_steps(source.read(item), source.context, item)
    return {"inputs": _scaling(run).scaled(context)}


def _source(run: RestoredRun) -> SeriesSource:
    source = run.config.data
    if not isinstance(source, SeriesSource):
        raise UserError(
            f"forecasts need a source of series, such as SeriesTable, got {type(source).__name__}"
        )
    return source


def _scaling(run: RestoredRun) -> FittedScaling:
    scaling = run.transform
    if not isinstance(scaling, FittedScaling):
        raise UserError(
            f"forecasts need the transform Scaling, but the run has {type(scaling).__name__}"
        )
    return scaling


def _last_steps(series: TimeSeries, steps: int, item: str) -> np.ndarray:
    """Returns the last values [1, T, C], after checks."""
    context = series.values[-steps:]
    if len(context) < steps:
        raise UserError(
            f"{item} has {len(context):,} steps, but a forecast needs the last {steps:,}"
        )
    missing = int((~np.isfinite(context)).any(1).sum())
    if missing:
        raise UserError(
            f"{item} lacks values in {missing:,} of the last {steps:,} steps, which a forecast "
            "needs; fill them in, or leave out what follows them"
        )
    return context[None]
