"""Forecasts of held-out windows for the report: errors by series, and charts over the truth.

W: windows to show, T: steps of the context, S: steps of the horizon, C: series.
"""

from contextlib import closing
from dataclasses import dataclass

import numpy as np

from flaxdl.data import Dataset, SeriesSource, evaluation_batches
from flaxdl.data.scaling import FittedScaling
from flaxdl.report import charts, page
from flaxdl.runs.forecasts import make_forecaster
from flaxdl.runs.restored import RestoredRun

_MAX_BATCH_SIZE = 128
_MAX_SHOWN = 6  # windows


@dataclass(frozen=True)
class Forecasts:
    """Errors of a model and of the seasonal naive forecast, and forecasts of some windows.

    All values are in the series' own units.
    """

    step: int
    """Step of the checkpoint."""
    split: str
    available: int
    """Number of windows in the split, all of which are evaluated."""
    columns: np.ndarray  # texts [C]
    """Names of the series."""
    errors: np.ndarray  # float64[2, 3, C]
    """MAE, RMSE and MASE of the model, and of the seasonal naive forecast."""
    shown: np.ndarray  # int32[W]
    """Numbers of the windows to show, evenly spaced over the split."""
    context: np.ndarray  # float64[W, T, C]
    truth: np.ndarray  # float64[W, S, C]
    forecast: np.ndarray  # float64[W, S, C]
    naive: np.ndarray  # float64[W, S, C]


def compute(run: RestoredRun, split: str, dataset: Dataset) -> Forecasts | None:
    """Evaluates all windows of a transformed split; None if its source has no series."""
    source, scaling = run.config.data, run.transform
    if not (isinstance(source, SeriesSource) and isinstance(scaling, FittedScaling)):
        return None
    forecast = make_forecaster(run)
    count = len(dataset)
    shown = np.unique(np.linspace(0, count - 1, min(count, _MAX_SHOWN)).astype(np.int32))
    sums = np.zeros((2, 3, len(scaling.mean)))
    kept: dict[str, list[np.ndarray]] = {}
    first, naive_error = 0, np.zeros(0)
    size = min(count, run.config.batch_size, _MAX_BATCH_SIZE)
    with closing(evaluation_batches(dataset, run.transform, batch_size=size)) as batches:
        for batch in batches:
            rows = np.flatnonzero(batch["weight"] > 0)
            fields = {"context": "inputs", "truth": "label", "naive": "naive"}
            values = {name: scaling.unscaled(batch[field]) for name, field in fields.items()}
            values["forecast"] = forecast({"inputs": values["context"]})
            naive_error = batch["naive_error"][0]
            for place, name in enumerate(("forecast", "naive")):
                error = np.abs(values[name] - values["truth"])[rows]
                sums[place, 0] += error.mean(1).sum(0)
                sums[place, 1] += np.square(error).mean(1).sum(0)
            here = shown[(shown >= first) & (shown < first + len(rows))] - first
            for name, array in values.items():
                kept.setdefault(name, []).append(array[here])
            first += len(rows)
    errors = sums / count
    errors[:, 1] = np.sqrt(errors[:, 1])
    errors[:, 2] = errors[:, 0] / np.where(naive_error > 0, naive_error, np.nan)
    return Forecasts(
        step=int(run.state.step),
        split=split,
        available=count,
        columns=np.array(source.series_columns),
        errors=errors,
        shown=shown,
        **{name: np.concatenate(parts) for name, parts in kept.items()},
    )


def section(found: Forecasts) -> page.Forecasts:
    """Returns the section of the report about forecasts."""
    drawn = []
    for place, number in enumerate(found.shown):
        one = place % len(found.columns)  # the series take turns
        name = f"{found.columns[one]}, window {number + 1:,} of {found.available:,}"
        arrays = (found.context, found.truth, found.forecast, found.naive)
        drawn.append(charts.forecast_chart(name, *(x[place, :, one].tolist() for x in arrays)))
    model, naive = found.errors
    return page.Forecasts(
        split=found.split,
        windows=found.available,
        rows=[
            (str(name), [charts.number(x) for x in (*model[:, c], *naive[:, c])])
            for c, name in enumerate(found.columns)
        ],
        charts=charts.rows_of(drawn, []),
    )
