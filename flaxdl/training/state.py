"""All that a training step changes, and so all that a checkpoint holds."""

from typing import Any

import jax
import optax
from flax import struct

from flaxdl.training.metrics import MetricSums
from flaxdl.training.precision import LossScale


class TrainState(struct.PyTreeNode):
    """The state of a run between two steps; data and dropout follow from `step`, `skipped`."""

    step: jax.Array
    """int32: batches trained with."""
    skipped: jax.Array
    """int32: batches left out after loss spikes, so that the next one is `step + skipped`."""
    updates: jax.Array
    """int32: optimizer steps taken, which is `step` less those without an update."""
    bad_steps: jax.Array
    """int32: steps skipped in a row, because loss or gradients were not finite."""
    params: Any
    """The master parameters."""
    model_state: Any
    """The other collections of the model by name, such as `batch_stats`."""
    optimizer_state: optax.OptState
    """The optimizer's running means."""
    loss_scale: LossScale | None
    """For float16 only."""
    sums: MetricSums
    """Metrics of the training batches since the last line of metrics."""
    gradient_norm: jax.Array
    """Global norm of the last gradients, before clipping."""
    learning_rate: jax.Array
    """Learning rate of the last update."""

    def has_diverged(self, max_bad_steps: int) -> bool:
        """Whether so many steps in a row were skipped, and not in search of a loss scale."""
        if int(self.bad_steps) < max_bad_steps:
            return False
        return self.loss_scale is None or float(self.loss_scale.scale) <= LossScale.LOWEST
