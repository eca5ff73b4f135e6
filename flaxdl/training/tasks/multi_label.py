"""Classification in which several of K classes may apply to an example, or none.

B: examples of a batch, N: examples of a split, K: classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.checks import check_shape
from flaxdl.errors import UserError
from flaxdl.training.tasks.class_values import (
    as_array,
    balanced_pos_weight,
    check_values,
    in_class_order,
)
from flaxdl.training.tasks.losses import Batch, check_logits
from flaxdl.training.tasks.scores import (
    PER_CLASS,
    RANKING,
    check_extra_metrics,
    counts_of,
    ranking_score,
    score,
)
from flaxdl.training.tasks.task import Better, Metrics, Task
from flaxdl.training.tasks.thresholds import DEFAULT_THRESHOLD, best_f1_threshold

_OF_ALL_CLASSES = ("macro_f1", "micro_f1", "exact_match", *RANKING)


@dataclass(frozen=True, kw_only=True)
class MultiLabelClassification(Task):
    """Classification into K classes that are independent of each other: K sigmoids.

    Labels are 1 for the classes of an example, 0 for others and NaN if unknown, [B, K]. The loss is
    the binary cross-entropy, averaged over all known entries. A class is predicted if its
    probability is at least its threshold.
    """

    better: ClassVar[Mapping[str, Better]] = {
        **Task.better,
        **dict.fromkeys((*PER_CLASS, *_OF_ALL_CLASSES), "higher"),
    }

    pos_weight: Literal["balanced"] | tuple[tuple[str, float], ...] | None = None
    """Weights of positive entries in the training loss, as in PyTorch's `BCEWithLogitsLoss`: pairs
    of class name and weight, one per class, or `balanced` for negatives / positives of each class
    in the training split. None for weight 1."""
    thresholds: Literal["best_f1"] | float | tuple[tuple[str, float], ...] = "best_f1"
    """Decision thresholds: a number for all classes, pairs of class name and threshold, or
    `best_f1` to choose the one of each class that has the best F1 score on the validation split
    with the best checkpoint, at the end of training. Until then, without validation and for classes
    without positive validation examples, or with a probability that is NaN, it is 0.5."""
    extra_metrics: tuple[str, ...] = ()
    """Additional metrics of evaluation: `macro_f1`, `micro_f1`, `precision/CLASS`, `recall/CLASS`,
    `f1/CLASS`, `exact_match` (fraction of examples of which all known entries are correct), `auroc`
    (area under the ROC curve, mean over classes) or `average_precision` (also a mean)."""

    def __post_init__(self):
        if self.pos_weight not in (None, "balanced"):
            check_values("pos_weight", self.pos_weight, instead="'balanced'")
        if isinstance(self.thresholds, int | float):
            if not 0 < self.thresholds < 1:
                raise UserError(f"thresholds must be between 0 and 1, got {self.thresholds}")
        elif self.thresholds != "best_f1":
            instead = "'best_f1', a number"
            check_values("thresholds", self.thresholds, instead=instead, below=1)
        check_extra_metrics(self.extra_metrics, _OF_ALL_CLASSES)

    def fit(self, labels: np.ndarray | None, classes: tuple[str, ...] | None) -> Self:
        """Returns the task with weights and thresholds in the order of the classes."""
        if classes is None:
            raise UserError(
                "MultiLabelClassification needs names of the columns of the labels, as "
                "Splits.classes; those of the data have none"
            )
        check_extra_metrics(self.extra_metrics, _OF_ALL_CLASSES, classes)
        fitted = self
        if self.pos_weight == "balanced":
            fitted = replace(fitted, pos_weight=balanced_pos_weight(labels, classes))
        elif self.pos_weight is not None:
            pos_weight = in_class_order("pos_weight", self.pos_weight, classes)
            fitted = replace(fitted, pos_weight=pos_weight)
        if isinstance(self.thresholds, tuple):
            thresholds = in_class_order("thresholds", self.thresholds, classes)
            fitted = replace(fitted, thresholds=thresholds)
        return fitted

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the binary cross-entropy of each entry, and its weight, [B, K].

        The weight of an unknown entry is 0. Labels may be probabilities.
        """
        pos_weight = None
        if self.pos_weight is not None:
            pos_weight = as_array("pos_weight", self.pos_weight, outputs)
        return _losses(outputs, batch, pos_weight)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns `loss` (without `pos_weight`), `accuracy` of all entries, and `exact_match`.

        `exact_match` is computed only if it is in `extra_metrics`.
        """
        losses, weights = _losses(outputs, batch)
        is_correct = self.predicted(outputs) == (batch["label"] > 0.5)
        metrics = {"loss": (losses, weights), "accuracy": (is_correct.astype(jnp.float32), weights)}
        if "exact_match" in self.extra_metrics:
            is_known = ~jnp.isnan(batch["label"])
            is_match = jnp.all(is_correct | ~is_known, axis=-1).astype(jnp.float32)
            metrics["exact_match"] = (is_match, batch["weight"] * jnp.any(is_known, axis=-1))
        return metrics

    def probabilities(self, outputs: jax.Array) -> jax.Array:
        """Returns the probability of each class, given logits; in float32 or higher precision."""
        return jax.nn.sigmoid(outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)))

    def predicted(self, outputs: jax.Array) -> jax.Array:
        """Returns whether each class is predicted, bool[B, K], given logits [B, K]."""
        return self.probabilities(outputs) >= self.threshold_array(outputs)

    def threshold_array(self, outputs: jax.Array) -> jax.Array:
        """Returns the threshold of each class, [K], given logits [B, K]."""
        if isinstance(self.thresholds, tuple):
            return as_array("thresholds", self.thresholds, outputs)
        threshold = DEFAULT_THRESHOLD if self.thresholds == "best_f1" else self.thresholds
        dtype = jnp.promote_types(outputs.dtype, jnp.float32)
        return jnp.full(outputs.shape[-1], threshold, dtype)

    def evaluation_names(self) -> tuple[str, ...]:
        """Returns `extra_metrics` without `exact_match`, which `metrics` returns."""
        return tuple(name for name in self.extra_metrics if name != "exact_match")

    def evaluation_totals(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns the counts of each class, int32[3, K], if a metric needs them."""
        if set(self.evaluation_names()) <= set(RANKING):
            return {}
        label = batch["label"]
        counted = (batch["weight"][:, None] > 0) & ~jnp.isnan(label)
        return {"counts": counts_of(self.predicted(outputs), label > 0.5, counted)}

    def evaluation_rows(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns labels and logits [B, K], if a metric needs them.

        Logits have the ranking of probabilities, without ties by rounding.
        """
        if not set(self.extra_metrics) & set(RANKING):
            return {}
        dtype = jnp.promote_types(outputs.dtype, jnp.float32)
        return {"label": batch["label"], "logits": outputs.astype(dtype)}

    def evaluation_metrics(
        self,
        totals: Mapping[str, np.ndarray],
        rows: Mapping[str, np.ndarray],
        classes: Sequence[str] | None,
    ) -> dict[str, float]:
        """Returns the metrics of `evaluation_names`; NaN where one is not defined, as 0 / 0."""
        return {
            name: _ranking_score(name, rows)
            if name in RANKING
            else score(name, totals["counts"], classes or ())
            for name in self.evaluation_names()
        }

    @property
    def needs_tuning(self) -> bool:
        """True if thresholds are to be chosen."""
        return self.thresholds == "best_f1"

    def tuning_rows(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Returns labels and probabilities, [B, K]."""
        return {"label": batch["label"], "probabilities": self.probabilities(outputs)}

    def tuned(self, rows: Mapping[str, np.ndarray], classes: Sequence[str] | None) -> Self:
        """Returns the task with the threshold of each class that has the best F1 score."""
        columns = zip(classes or (), rows["probabilities"].T, rows["label"].T, strict=True)
        thresholds = []
        for name, probabilities, label in columns:
            is_known = ~np.isnan(label)
            threshold = best_f1_threshold(probabilities[is_known], label[is_known] > 0.5)
            thresholds.append((name, threshold))
        return replace(self, thresholds=tuple(thresholds))

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is one logit per class."""
        check_logits(outputs, num_classes)


def _losses(
    outputs: jax.Array, batch: Batch, pos_weight: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the binary cross-entropy of each entry, and its weight, [B, K]."""
    label, weight = batch["label"], batch["weight"]
    check_shape("label", label, "B K", B=outputs.shape[0])
    check_logits(outputs, label.shape[1])
    logits = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
    is_known = ~jnp.isnan(label)
    target = jnp.where(is_known, label, 0).astype(logits.dtype)
    positive, negative = jax.nn.softplus(-logits), jax.nn.softplus(logits)  # losses for 1 and 0
    if pos_weight is not None:
        positive *= pos_weight
    losses = target * positive + (1 - target) * negative
    return losses, weight[:, None] * is_known


def _ranking_score(name: str, rows: Mapping[str, np.ndarray]) -> float:
    label = rows["label"]
    return ranking_score(name, rows["logits"], label > 0.5, ~np.isnan(label))
