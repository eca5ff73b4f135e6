"""Selection of the best checkpoint, and early stopping: decided on the validation split alone."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError
from flaxdl.training.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Criterion of the best checkpoint, and of ending a run that no longer improves."""

    metric: str = "accuracy"
    """Validation metric that decides; the task says whether higher or lower is better."""
    patience: int | None = None
    """Evaluations without a new best after which the run ends early; None never ends it."""

    def __post_init__(self):
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience must be at least 1 or None, got {self.patience}")

    def check(self, metrics: Collection[str], task: Task) -> None:
        """Checks that the metric is computed on validation, and that its direction is known.

        Raises:
            UserError: if it is not, listing the metrics that are.
        """
        if self.metric not in metrics:
            raise UserError(
                f"selection.metric is {self.metric!r}, but validation gives {', '.join(metrics)}"
                f"{did_you_mean(self.metric, metrics)}"
            )
        if task.better.get(self.metric) not in ("higher", "lower"):
            raise UserError(
                f"selection.metric is {self.metric!r}, but {type(task).__name__}.better does not "
                f'say whether "higher" or "lower" is better, got {dict(task.better)}; set it as in '
                f'`better = {{**Task.better, "{self.metric}": "lower"}}`'
            )

    def best_step(self, lines: Sequence[dict[str, Any]], task: Task) -> int | None:
        """The step of the best line, the latest of equals; None without lines.

        Raises:
            UserError: if the lines lack the metric, or the task does not say which values of it
                are better.
        """
        return lines[self._best(lines, task)]["step"] if lines else None

    def is_over(self, lines: Sequence[dict[str, Any]], task: Task, *, after: int = 0) -> bool:
        """Whether as many evaluations as `patience` allows have passed since the best.

        Args:
            lines: the evaluations so far.
            task: the run's task.
            after: evaluations up to this step do not count, such as those of a frozen network.
        """
        lines = [line for line in lines if line["step"] > after]
        if self.patience is None or not lines:
            return False
        return len(lines) - 1 - self._best(lines, task) >= self.patience

    def _best(self, lines: Sequence[dict[str, Any]], task: Task) -> int:
        self.check([name for name in lines[0] if name not in ("step", "split")], task)
        sign = {"higher": 1.0, "lower": -1.0}[task.better[self.metric]]

        def goodness(index: int) -> tuple[float, int]:
            value = lines[index][self.metric]
            return (float("-inf") if value is None else sign * value, index)

        return max(range(len(lines)), key=goodness)
