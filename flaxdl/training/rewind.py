"""Loss spikes: when a run goes back, and how it leaves the batches out that it has seen."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flaxdl.errors import UserError

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
