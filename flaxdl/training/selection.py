"""Selection of the best checkpoint, and early stopping, by validation metrics only."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError
from flaxdl.training.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Choice of the best checkpoint, and early stopping."""

    metric: str = "accuracy"
    """Validation metric to select by; the task defines whether higher or lower is better."""
    patience: int | None = None
    """Number of evaluations without improvement before early stopping; None disables it."""

    def __post_init__(self):
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience must be at least 1 or None, got {self.patience}")

    def check(
        self, metrics: Collection[str], task: Task, classes: tuple[str, ...] | None = None
    ) -> None:
        """Checks that validation computes the metric and that the task defines its direction.

        Args:
            metrics: names of the metrics of validation.
            task: task of the run.
            classes: names of the classes, see `Splits.classes`.

        Raises:
            UserError: if validation does not compute the metric (the message lists those that it
                computes), or if the task does not define its direction.
        """
        if self.metric not in metrics:
            raise UserError(
                f"selection.metric must be a metric of validation ({', '.join(metrics)}), "
                f"got {self.metric!r}{self._hint(metrics, task, classes)}"
            )
        if task.direction(self.metric) not in ("higher", "lower"):
            raise UserError(
                f"selection.metric is {self.metric!r}, but {type(task).__name__}.better does not "
                f'map it to "higher" or "lower", got {dict(task.better)}; add it, for example '
                f'`better = {{**Task.better, "{self.metric}": "lower"}}`'
            )

    def _hint(self, metrics: Collection[str], task: Task, classes: tuple[str, ...] | None) -> str:
        if _is_extra_metric(self.metric, task, classes):
            return "; to compute it, add it to task.extra_metrics"
        others = [m for m in metrics if m != "loss" and task.direction(m)]
        example = f"; set --selection.metric {[*others, 'loss'][0]}"
        return did_you_mean(self.metric, metrics) or example

    def best_step(self, lines: Sequence[dict[str, Any]], task: Task) -> int | None:
        """Returns the step of the best line, the latest in case of a tie; None without lines.

        Raises:
            UserError: if the lines lack the metric, or if the task does not define its direction.
        """
        return lines[self._best(lines, task)]["step"] if lines else None

    def should_stop(self, lines: Sequence[dict[str, Any]], task: Task, *, after: int = 0) -> bool:
        """Returns whether `patience` evaluations have passed without improvement.

        Args:
            lines: lines of validation metrics so far.
            task: task of the run.
            after: step up to which evaluations are ignored, such as those with frozen parameters.
        """
        lines = [line for line in lines if line["step"] > after]
        if self.patience is None or not lines:
            return False
        return len(lines) - 1 - self._best(lines, task) >= self.patience

    def _best(self, lines: Sequence[dict[str, Any]], task: Task) -> int:
        self.check([name for name in lines[0] if name not in ("step", "split")], task)
        sign = 1.0 if task.direction(self.metric) == "higher" else -1.0

        def score(index: int) -> tuple[float, int]:
            value = lines[index][self.metric]
            return (float("-inf") if value is None else sign * value, index)

        return max(range(len(lines)), key=score)


def _is_extra_metric(name: str, task: Task, classes: tuple[str, ...] | None) -> bool:
    """Returns whether a task accepts the name of a metric in `extra_metrics`."""
    if not hasattr(task, "extra_metrics"):
        return False
    try:
        replace(task, extra_metrics=(name,)).fit(None, classes)
    except UserError:
        return False
    return True
