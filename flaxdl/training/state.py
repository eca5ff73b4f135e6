"""The training state: everything that a step changes and a checkpoint stores."""

from typing import Any

import jax
import optax
from flax import struct

from flaxdl.training.ema import Average
from flaxdl.training.metrics import MetricSums
from flaxdl.training.precision import LossScale


class TrainState(struct.PyTreeNode):
    """State of a run between two steps; `step` and `skipped` determine data order and dropout."""

    step: jax.Array
    """int32: number of batches trained on."""
    skipped: jax.Array
    """int32: number of batches skipped after loss spikes; the next one is `step + skipped`."""
    updates: jax.Array
    """int32: number of optimizer updates, which is `step` minus the steps without one; the count
    of the learning-rate schedule."""
    bad_steps: jax.Array
    """int32: consecutive steps skipped because loss or gradients were not finite."""
    params: Any
    """Master parameters."""
    model_state: Any
    """Other variable collections of the model by name, such as `batch_stats`."""
    optimizer_state: optax.OptState
    """State of the optimizer, such as its moments, without the count of the schedule."""
    average: Average | None
    """Moving averages of `params` and `model_state`; None without EMA."""
    loss_scale: LossScale | None
    """Loss scale; None except for float16."""
    sums: MetricSums
    """Sums of training metrics since the last line of metrics."""
    gradient_norm: jax.Array
    """Global norm of the last gradients, before clipping."""
    learning_rate: jax.Array
    """Learning rate of the last update."""

    @property
    def averaged(self) -> "TrainState":
        """State for inference: with EMA, its `params` and `model_state` are the averages."""
        if self.average is None:
            return self
        params, model_state = self.average.params, self.average.model_state
        return self.replace(params=params, model_state=model_state, average=None)

    def has_diverged(self, max_bad_steps: int) -> bool:
        """Returns whether `max_bad_steps` consecutive steps were skipped.

        Steps skipped while the loss scale is still being reduced do not count.
        """
        if int(self.bad_steps) < max_bad_steps:
            return False
        return self.loss_scale is None or float(self.loss_scale.scale) <= LossScale.LOWEST
