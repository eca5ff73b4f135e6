"""Training objective of forecasts: a point loss, and metrics in the series' own units.

B: windows, T: steps of the context, S: steps of the horizon, C: series.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_shape
from flaxdl.errors import UserError
from flaxdl.training.tasks.losses import POINT_LOSSES, Batch
from flaxdl.training.tasks.task import Better, Metrics, Task

_FIELDS = ("label", "naive", "naive_error", "scale")


@dataclass(frozen=True, kw_only=True)
class Forecasting(Task):
    """Point forecasts of time series: the model maps a context [B, T, C] to `label` [B, S, C].

    The loss is computed on scaled values, so that all series have equal weight. Metrics are
    averages over all windows, steps of the horizon and series, in the series' own units:

    - `mae`, the mean absolute error, and `rmse`, the root of the mean squared error.
    - `mase`, the mean absolute scaled error (Hyndman and Koehler, 2006): the absolute error divided
      by the mean absolute error in the training part of the seasonal naive forecast, one season
      ahead. Below 1 does not mean better than this forecast on the same windows. Series that are
      constant over seasons in the training part do not count.
    - `naive_mae`, the mean absolute error of the seasonal naive forecast, which repeats the last
      season of the context, on the same windows; and `relative_mae` = `mae` / `naive_mae`.

    With several series in different units, those with large values dominate all of these but
    `mase`; the report has the errors of each series. A source such as `SeriesTable` and the
    transform `Scaling` provide the fields of a batch.
    """

    better: ClassVar[Mapping[str, Better]] = {
        **Task.better,
        "mae": "lower",
        "rmse": "lower",
        "mase": "lower",
        "relative_mae": "lower",
    }
    loss_fields = (*Task.loss_fields, "naive", "naive_error", "scale")

    point_loss: Literal["mse", "mae", "huber"] = "mse"
    """Loss of an error: its square, its absolute value, or half its square up to 1 and linear
    beyond, as `torch.nn.HuberLoss`."""

    def __post_init__(self):
        check_choice("point_loss", self.point_loss, POINT_LOSSES)

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of each value, and its weight, [B, S, C]."""
        return self.metrics(outputs, batch)["loss"]

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns the loss and the errors of each value.

        Raises:
            UserError: if the batch does not contain the fields of forecasting, or if the model
                forecasts other steps or series.
        """
        if missing := [name for name in _FIELDS if name not in batch]:
            raise UserError(
                f"forecasting needs the fields {', '.join(_FIELDS)} in each batch, but "
                f"{', '.join(missing)} is missing; use a source such as SeriesTable and the "
                "transform Scaling"
            )
        label = batch["label"]
        if outputs.shape != label.shape:
            raise UserError(
                f"the model forecasts [S, C] = {list(outputs.shape[1:])}, but the horizon and the "
                f"series of the data are {list(label.shape[1:])}; leave model.horizon at None"
            )
        wide = jnp.promote_types(outputs.dtype, jnp.float32)
        error = outputs.astype(wide) - label  # [B, S, C]
        weight = jnp.broadcast_to(batch["weight"][:, None, None], error.shape)
        scale, naive_error = batch["scale"][:, None], batch["naive_error"][:, None]  # [B, 1, C]
        absolute = jnp.abs(error) * scale
        is_scaled = naive_error > 0  # False for NaN
        return {
            "loss": (POINT_LOSSES[self.point_loss](error, 1.0), weight),
            "mae": (absolute, weight),
            "mean_squared_error": (jnp.square(absolute), weight),
            "mase": (absolute / jnp.where(is_scaled, naive_error, 1), weight * is_scaled),
            "naive_mae": (jnp.abs(batch["naive"] - label) * scale, weight),
        }

    def finish(self, means: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics to report, given the averages of `metrics`."""
        mae, naive_mae = means["mae"], means["naive_mae"]
        return {
            "loss": means["loss"],
            "mae": mae,
            "rmse": math.sqrt(means["mean_squared_error"]),
            "mase": means["mase"],
            "relative_mae": mae / naive_mae if naive_mae else math.nan,
            "naive_mae": naive_mae,
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a forecast for each step and series."""
        check_shape("the model's outputs", outputs, "B S C")
