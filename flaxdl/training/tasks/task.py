"""Base class of tasks, the training objectives.

B: examples, K: classes.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.errors import UserError
from flaxdl.training.tasks.losses import Batch, weighted

Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Values and weights of each metric, as two arrays of equal shape."""
Better = Literal["higher", "lower"]
RESERVED_NAMES = (
    *("step", "split", "learning_rate", "gradient_norm", "skipped_batches"),
    "examples_per_second",
)
"""Names in a line of metrics that the metrics of a task cannot have."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Base class of tasks; a task defines the model's arguments, the loss and the metrics.

    A task with metrics other than loss and accuracy declares their direction in `better`, as in
    `better = {**Task.better, "error": "lower"}`.
    """

    better: ClassVar[Mapping[str, Better]] = {"loss": "lower", "accuracy": "higher"}
    """Direction of better values of each metric that `selection.metric` can be."""
    loss_fields: ClassVar[tuple[str, ...]] = ("label", "label_2", "mix", "weight")
    """Fields of a batch that only the task uses; all others are arguments of the model."""

    def fit(self, labels: np.ndarray | None, classes: tuple[str, ...] | None) -> Self:
        """Returns the task fitted to the training split, such as with class weights.

        A run calls it when it begins, and stores the fields that it changes; a resumed run calls
        it on the fitted task, which it must return unchanged if the classes are the same. By
        default, returns the task itself.

        Args:
            labels: labels of all training examples, [N, ...], without those of weight 0 if the
                weights are known; None if getting the labels requires reading every example.
            classes: class names; None if labels are not classes.

        Raises:
            UserError: if the labels do not fit the task.
        """
        return self

    def num_outputs(self, classes: Sequence[str] | None) -> int | None:
        """Returns the size of a model whose `num_classes` is None; None if it is not known.

        By default, it is the number of classes, or of columns of the labels.

        Args:
            classes: their names; None if unnamed.
        """
        return None if classes is None else len(classes)

    def model_arguments(self, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """Returns the model's arguments: `inputs`, and other fields as keyword arguments.

        By default, the keyword arguments are all fields except those in `loss_fields`.
        """
        keywords = {k: v for k, v in batch.items() if k not in ("inputs", *self.loss_fields)}
        return batch["inputs"], keywords

    def losses(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns losses and weights of equal shape; training minimizes the weighted mean loss.

        The losses should be computed in float32 or higher precision.
        """
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """Returns the weighted mean of `losses`."""
        losses, weights = self.losses(outputs, batch)
        return jnp.sum(weighted(losses, weights)) / jnp.sum(weights)

    def metrics(self, outputs: Any, batch: Batch) -> Metrics:
        """Returns values and weights of each metric, to be averaged; must include `loss`."""
        raise NotImplementedError(f"{type(self).__name__}.metrics")

    def finish(self, means: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics to report, given the averages of `metrics`; by default, the same.

        For metrics that are functions of averages, such as the root of a mean squared error. The
        result must include `loss`.
        """
        return dict(means)

    def evaluation_names(self) -> tuple[str, ...]:
        """Returns the names of the metrics of `evaluation_metrics`; by default, there are none.

        They must differ from the names of the metrics that `finish` returns.
        """
        return ()

    def evaluation_totals(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns arrays that evaluation adds up over all batches, such as counts per class.

        Their shapes must not depend on the batch size. By default, there are none.
        """
        return {}

    def evaluation_rows(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns arrays [B, ...] that evaluation collects for all examples of weight above 0.

        For metrics that are not functions of sums, such as those of a ranking. They need memory for
        the whole split. By default, there are none.
        """
        return {}

    def evaluation_metrics(
        self,
        totals: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray],
        classes: Sequence[str] | None,
    ) -> dict[str, float]:
        """Returns the metrics of `evaluation_names`: those of a split, computed on the host.

        Args:
            totals: sums of `evaluation_totals` over the split.
            rows: `evaluation_rows` of all N examples of the split, arrays [N, ...].
            classes: names of the classes, or of the columns of the labels; None if unnamed.
        """
        return {}

    @property
    def needs_tuning(self) -> bool:
        """True if the task has fields to choose by validation; by default, it has none."""
        return False

    def tuning_rows(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns the arrays [B, ...] of a validation batch that `tuned` needs."""
        return {}

    def tuned(self, rows: Mapping[str, np.ndarray], classes: Sequence[str] | None) -> Self:
        """Returns the task with fields chosen by validation, such as decision thresholds.

        A run with a task that needs tuning calls it once, with the best checkpoint, before the
        test split is evaluated, and stores the fields that it changes. They must not change the
        loss.

        Args:
            rows: `tuning_rows` of all N examples of the validation split, arrays [N, ...].
            classes: names of the classes, as in `evaluation_metrics`.
        """
        return self

    def direction(self, metric: str) -> Better | None:
        """Returns the direction of better values of a metric; None if it is not defined.

        The metric `precision/cat` of a class has the direction of `precision`.
        """
        of_class, _, _ = metric.partition("/")
        return self.better.get(metric) or self.better.get(of_class)

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that the model's outputs fit the task and the data; by default, does nothing.

        Args:
            outputs: outputs of the model, or their shapes and dtypes.
            num_classes: number of classes in the data; None if labels are not classes.

        Raises:
            UserError: if the outputs do not fit.
        """


def check_metrics(task: Task, metrics: Collection[Any]) -> None:
    """Checks the names of a task's metrics.

    Raises:
        UserError: if there is no `loss`, or if a name is reserved or not a string.
    """
    owner = f"{type(task).__name__}.metrics"
    if "loss" not in metrics:
        raise UserError(f"{owner} must return 'loss', got {', '.join(map(str, metrics))}")
    _check_names(owner, metrics)


def check_evaluation_names(task: Task, metrics: Collection[str]) -> None:
    """Checks the names of a task's metrics that are not averages of examples.

    Args:
        task: task to check.
        metrics: names of the metrics that `finish` returns.

    Raises:
        UserError: if a name is reserved, not a string, or that of another metric.
    """
    owner, names = f"{type(task).__name__}.evaluation_names", task.evaluation_names()
    _check_names(owner, names)
    repeated = [name for name in names if name in metrics or names.count(name) > 1]
    if repeated:
        raise UserError(
            f"{owner} must name each metric once, and none that `metrics` or `finish` return, got "
            f"{', '.join(dict.fromkeys(repeated))}"
        )


def _check_names(owner: str, metrics: Collection[Any]) -> None:
    for name in metrics:
        if not isinstance(name, str) or name in RESERVED_NAMES:
            raise UserError(
                f"{owner} must not name a metric {name!r}: names must be strings other than the "
                f"reserved {', '.join(RESERVED_NAMES)}"
            )
