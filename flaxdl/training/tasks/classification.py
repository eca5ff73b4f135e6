"""Classification into one of K classes.

B: examples, K: classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.errors import UserError
from flaxdl.training.tasks.class_values import (
    as_array,
    balanced_weights,
    check_values,
    in_class_order,
)
from flaxdl.training.tasks.losses import (
    Batch,
    check_logits,
    check_smoothing,
    cross_entropy,
    is_correct,
)
from flaxdl.training.tasks.scores import (
    PER_CLASS,
    RANKING,
    check_extra_metrics,
    counts_of,
    ranking_score,
    score,
)
from flaxdl.training.tasks.task import Better, Metrics, Task

_OF_ALL_CLASSES = ("macro_f1", "balanced_accuracy", *RANKING)


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Classification into K classes, with the cross-entropy loss."""

    better: ClassVar[Mapping[str, Better]] = {
        **Task.better,
        **dict.fromkeys(("top_5_accuracy", *PER_CLASS, *_OF_ALL_CLASSES), "higher"),
    }

    label_smoothing: float = 0.0
    """Label smoothing factor, in [0, 1): fraction of the target probability that is spread
    uniformly over all classes in training."""
    class_weights: Literal["balanced"] | tuple[tuple[str, float], ...] | None = None
    """Weights of the classes in the training loss: pairs of class name and weight, one per class,
    or `balanced` for N / (K * count), computed from the training split: a class has `count` of its
    N examples. None for equal weights."""
    extra_metrics: tuple[str, ...] = ()
    """Additional metrics of evaluation: `macro_f1`, `balanced_accuracy`, `precision/CLASS`,
    `recall/CLASS`, `f1/CLASS`, `auroc` (area under the ROC curve) and `average_precision`. The last
    two are means over the classes, each against all others; with two classes, `average_precision`
    is that of the second."""

    def __post_init__(self):
        check_smoothing(self.label_smoothing)
        if self.class_weights not in (None, "balanced"):
            check_values("class_weights", self.class_weights, instead="'balanced'")
        check_extra_metrics(self.extra_metrics, _OF_ALL_CLASSES)

    def fit(self, labels: np.ndarray | None, classes: tuple[str, ...] | None) -> Self:
        """Returns the task with one weight per class, in the order of the classes."""
        check_extra_metrics(self.extra_metrics, _OF_ALL_CLASSES, classes or ())
        if self.class_weights is None:
            return self
        if classes is None:
            raise UserError("class_weights need classes as labels; those of the data are not")
        if self.class_weights == "balanced":
            return replace(self, class_weights=balanced_weights(labels, classes))
        weights = in_class_order("class_weights", self.class_weights, classes)
        return replace(self, class_weights=weights)

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the cross-entropy of each example, with label smoothing, and its weight, [B].

        As in PyTorch, class weights also apply to the smoothed part, and the mean loss is divided
        by the sum of the weights of the labels or, for mixed examples, by their number.
        """
        label, weight = batch["label"], batch["weight"]
        if self.class_weights is None:
            return cross_entropy(outputs, label, self.label_smoothing), weight
        class_weights = as_array("class_weights", self.class_weights, outputs)
        losses = cross_entropy(outputs, label, self.label_smoothing, class_weights)
        if "mix" in batch:
            return losses, weight
        return losses / class_weights[label], weight * class_weights[label]

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns `loss` (without label smoothing), `accuracy` and `top_5_accuracy`.

        `top_5_accuracy` is computed only for more than ten classes.
        """
        label, weight = batch["label"], batch["weight"]
        metrics = {
            "loss": (cross_entropy(outputs, label), weight),
            "accuracy": (is_correct(outputs, label), weight),
        }
        if outputs.shape[-1] > 10:
            best = jax.lax.top_k(outputs, 5)[1]  # [B, 5]
            found = jnp.any(best == label[:, None], axis=-1)
            metrics["top_5_accuracy"] = (found.astype(jnp.float32), weight)
        return metrics

    def evaluation_names(self) -> tuple[str, ...]:
        """Returns `extra_metrics`."""
        return self.extra_metrics

    def evaluation_totals(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns the counts of each class, int32[3, K], if a metric needs them."""
        if set(self.extra_metrics) <= set(RANKING):
            return {}
        classes = jnp.arange(outputs.shape[-1])
        predicted, actual = jnp.argmax(outputs, -1, keepdims=True), batch["label"][:, None]
        counted = batch["weight"][:, None] > 0
        return {"counts": counts_of(predicted == classes, actual == classes, counted)}

    def evaluation_rows(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns labels [B] and probabilities [B, K], if a metric needs them."""
        if not set(self.extra_metrics) & set(RANKING):
            return {}
        wide = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        return {"label": batch["label"], "probabilities": jax.nn.softmax(wide)}

    def evaluation_metrics(
        self,
        totals: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray],
        classes: Sequence[str] | None,
    ) -> dict[str, float]:
        """Returns `extra_metrics`; NaN where one is not defined, such as 0 / 0."""
        return {
            name: _ranking_score(name, rows)
            if name in RANKING
            else score(name, totals["counts"], classes or ())
            for name in self.extra_metrics
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is one logit per class."""
        check_logits(outputs, num_classes)


def _ranking_score(name: str, rows: Mapping[str, np.ndarray]) -> float:
    probabilities, label = rows["probabilities"], rows["label"]
    actual = label[:, None] == np.arange(probabilities.shape[1])
    if probabilities.shape[1] == 2 and name == "average_precision":
        probabilities, actual = probabilities[:, 1:], actual[:, 1:]
    return ranking_score(name, probabilities, actual, np.ones_like(actual))
