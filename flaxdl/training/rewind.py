"""Loss spikes: when a run is rolled back to a checkpoint, and how it skips batches it has seen."""

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

_MEMORY = 10  # lines that a new one is compared with
_FEWEST_LINES = 3  # before which nothing can be said


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Whether a run whose loss jumps goes back to a checkpoint, and on with other batches.

    The batches between the checkpoint and the spike are left out. So the authors of PaLM got past
    their spikes, which came of certain batches in a certain state of the parameters, not of the
    batches alone (Chowdhery et al., section 5.1, https://arxiv.org/abs/2204.02311).
    """

    factor: float | None = None
    """A spike is a training line whose loss is more than this many times the median of the ten
    lines before it, such as 2; None never goes back. Losses near zero jump without need."""

    def __post_init__(self):
        if self.factor is not None and not self.factor > 1:
            raise UserError(f"rewind.factor must be more than 1 or None, got {self.factor}")

    def is_spike(self, lines: Sequence[dict[str, Any]]) -> bool:
        """Whether the last of the training lines is one; a loss of which nothing is known is not.

        Args:
            lines: the training lines, oldest first.
        """
        losses = [line["loss"] for line in lines[-_MEMORY - 1 :] if line["loss"] is not None]
        if self.factor is None or len(losses) <= _FEWEST_LINES or lines[-1]["loss"] is None:
            return False
        *before, last = losses
        return last > self.factor * statistics.median(before)


class LossSpike(Exception):
    """The loss has jumped; it keeps how far the state that has seen the spike had come."""

    def __init__(self, state: TrainState):
        self.step, self.skipped = int(state.step), int(state.skipped)


def last_due_before(step: int, evaluate_every: int) -> int:
    """The last step before this one whose checkpoint was due, 0 if none was.

    Other checkpoints, of runs that were stopped, are not rolled back to: the run would end
    differently from one that was never stopped.
    """
    return (step - 1) // evaluate_every * evaluate_every


def can_roll_back(checkpoints: Checkpoints, step: int, evaluate_every: int) -> bool:
    """Returns whether there is a checkpoint to roll back to after a spike; warns if not."""
    checkpoints.settle()
    start = last_due_before(step, evaluate_every)
    if start in checkpoints.steps():
        return True
    _LOGGER.warning(
        "the loss has jumped at step %d, but there is no checkpoint of step %d to go back to",
        step,
        start,
    )
    return False


def roll_back(
    setup: TrainingRun, session: TrainingSession, spike: LossSpike, start: int
) -> TrainState:
    """The state of the checkpoint of step `start`, from which the batches of the spike are skipped.

    Later checkpoints and lines of metrics are removed.

    Args:
        setup: the run.
        session: its files.
        spike: where the loss jumped.
        start: the step to return to.
    """
    _LOGGER.warning(
        "the loss has jumped at step %d: going back to step %d, and on without the batches "
        "in between",
        spike.step,
        start,
    )
    session.checkpoints.remove_after(start)
    session.metrics.rewind(start, keep_test=False)
    state = session.checkpoints.restore(setup.shapes(start), start)
    skipped = np.int32(spike.skipped + spike.step - start)
    return state.replace(skipped=jax.device_put(skipped, state.skipped.sharding))
