"""Recovery from loss spikes: a run rolls back to a checkpoint and skips the batches in between."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flaxdl.errors import UserError
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.protocols import TrainingRun, TrainingSession
from flaxdl.training.state import TrainState

_LOGGER = logging.getLogger(__name__)

_WINDOW = 10  # previous training lines that a line is compared with
_MIN_LINES = 3  # previous training lines that are needed to detect a spike


@dataclass(frozen=True, kw_only=True)
class SpikeRecovery:
    """Recovery from loss spikes: rolling back to a checkpoint and skipping the batches in between.

    PaLM was trained this way. Its spikes came from particular batches meeting a particular state of
    the parameters, not from the batches alone (Chowdhery et al., section 5.1,
    https://arxiv.org/abs/2204.02311).
    """

    factor: float | None = None
    """Threshold for spikes, such as 2: a loss above `factor` times the median of the last ten
    training losses is a spike. None disables rollback. Losses close to zero may exceed the
    threshold by chance."""

    def __post_init__(self):
        if self.factor is not None and not self.factor > 1:
            raise UserError(
                f"spike_recovery.factor must be greater than 1 or None, got {self.factor}"
            )

    def is_spike(self, lines: Sequence[dict[str, Any]]) -> bool:
        """Returns whether the latest training loss is a spike; non-finite losses are not.

        Args:
            lines: logged training metrics, oldest first.
        """
        losses = [line["loss"] for line in lines[-_WINDOW - 1 :] if line["loss"] is not None]
        if self.factor is None or len(losses) <= _MIN_LINES or lines[-1]["loss"] is None:
            return False
        *before, last = losses
        return last > self.factor * statistics.median(before)


class LossSpike(Exception):
    """Raised when the loss spikes; stores the step and the number of batches skipped so far."""

    def __init__(self, state: TrainState):
        self.step, self.skipped = int(state.step), int(state.skipped)


def last_due_before(step: int, evaluate_every: int) -> int:
    """Returns the last step before `step` at which a checkpoint was due, 0 if there was none.

    A run does not roll back to checkpoints saved at interruptions, because its results would then
    differ from those of an uninterrupted run.
    """
    return (step - 1) // evaluate_every * evaluate_every


def can_roll_back(checkpoints: Checkpoints, step: int, evaluate_every: int) -> bool:
    """Returns whether there is a checkpoint to roll back to after a spike; warns if not."""
    checkpoints.join()
    start = last_due_before(step, evaluate_every)
    if start in checkpoints.steps():
        return True
    _LOGGER.warning(
        "loss spiked at step %d, but there is no checkpoint of step %d to roll back to",
        step,
        start,
    )
    return False


def roll_back(
    setup: TrainingRun, session: TrainingSession, spike: LossSpike, start: int
) -> TrainState:
    """Restores the state at step `start` and sets it to skip the batches up to the spike.

    Later checkpoints and lines of metrics are removed.

    Args:
        setup: setup of the run.
        session: session of the run, with its metrics and checkpoints.
        spike: loss spike to recover from.
        start: step to roll back to.
    """
    _LOGGER.warning(
        "loss spiked at step %d: rolling back to step %d and skipping the batches in between",
        spike.step,
        start,
    )
    session.checkpoints.remove_after(start)
    session.metrics.truncate(start, keep_test=False)
    state = session.checkpoints.restore(setup.shapes(start), start)
    skipped = np.int32(spike.skipped + spike.step - start)
    return state.replace(skipped=jax.device_put(skipped, state.skipped.sharding))
