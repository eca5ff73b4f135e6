"""Which step is the best so far, and whether it is time to stop: decided on validation alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from flaxdl.spelling import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How the best checkpoint is chosen, and when a run without progress ends."""

    metric: str = "accuracy"
    """The validation metric that decides; of `loss` less is better, of all others more."""
    patience: int | None = None
    """Evaluations without a new best after which the run ends early; None never ends it."""

    def __post_init__(self):
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 or None, got {self.patience}")

    def check(self, metrics: Collection[str]) -> None:
        """Checks that the metric is one of those that validation gives.

        Raises:
            ValueError: with those.
        """
        if self.metric not in metrics:
            raise ValueError(
                f"selection.metric is {self.metric!r}, but validation gives {', '.join(metrics)}"
                f"{did_you_mean(self.metric, metrics)}"
            )

    def best_step(self, lines: Sequence[dict[str, Any]]) -> int | None:
        """The step of the best line, the latest of equals; None without lines.

        Raises:
            ValueError: if the lines lack the metric, with those they have.
        """
        return lines[self._best(lines)]["step"] if lines else None

    def is_over(self, lines: Sequence[dict[str, Any]], *, after: int = 0) -> bool:
        """Whether as many evaluations as `patience` allows have passed since the best.

        Args:
            lines: the evaluations so far.
            after: those up to this step do not count, such as those of a frozen network.
        """
        lines = [line for line in lines if line["step"] > after]
        if self.patience is None or not lines:
            return False
        return len(lines) - 1 - self._best(lines) >= self.patience

    def _best(self, lines: Sequence[dict[str, Any]]) -> int:
        self.check([name for name in lines[0] if name not in ("step", "split")])
        sign = -1.0 if self.metric == "loss" else 1.0

        def goodness(index: int) -> tuple[float, int]:
            value = lines[index][self.metric]
            return (float("-inf") if value is None else sign * value, index)

        return max(range(len(lines)), key=goodness)
