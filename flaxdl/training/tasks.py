"""Training objectives: the loss and the metrics of a batch.

B examples, K classes, T tokens, S target tokens, V vocabulary.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from flaxdl.checks import check_integers, check_shape
from flaxdl.errors import UserError

Batch = Mapping[str, jax.Array]
Metrics = dict[str, tuple[jax.Array, jax.Array]]
"""Metric → its values and their weights, both of one shape."""
Better = Literal["higher", "lower"]
RESERVED_NAMES = (
    *("step", "split", "learning_rate", "gradient_norm", "skipped_batches"),
    "examples_per_second",
)
"""What a line of metrics holds besides the metrics of the task."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Base class: turns a batch into arguments of the model, and its outputs into a loss.

    A task with other metrics than loss and accuracy declares their direction in `better`, as in
    `better = {**Task.better, "error": "lower"}`.
    """

    better: ClassVar[Mapping[str, Better]] = {"loss": "lower", "accuracy": "higher"}
    """Metric → which values are better; `selection.metric` must be one of these."""

    def model_arguments(self, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """The positional argument `inputs`, and by keyword all that is not the task's own."""
        keywords = {k: v for k, v in batch.items() if k not in ("inputs", "label", "weight")}
        return batch["inputs"], keywords

    def losses(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """What is minimized in the mean, in at least float32, and its weights, of one shape."""
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """The weighted mean of `losses`."""
        losses, weights = self.losses(outputs, batch)
        return jnp.sum(weighted(losses, weights)) / jnp.sum(weights)

    def metrics(self, outputs: Any, batch: Batch) -> Metrics:
        """What is averaged, each by its own weights; `loss` is among the metrics."""
        raise NotImplementedError(f"{type(self).__name__}.metrics")

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks the model's outputs (shapes suffice) against what the data hold.

        Raises:
            UserError: if the model cannot be trained on the data for this task.
        """


def check_metrics(task: Task, metrics: Collection[Any]) -> None:
    """Checks the names of a task's metrics.

    Raises:
        UserError: if there is no `loss`, or a name is taken or no text.
    """
    owner = f"{type(task).__name__}.metrics"
    if "loss" not in metrics:
        raise UserError(f"{owner} must return 'loss', got {', '.join(map(str, metrics))}")
    for name in metrics:
        if not isinstance(name, str) or name in RESERVED_NAMES:
            raise UserError(
                f"{owner} must not name a metric {name!r}: names are texts, and every line of "
                f"metrics has {', '.join(RESERVED_NAMES)} already"
            )


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One of K classes for each example: cross-entropy, and accuracy."""

    better: ClassVar[Mapping[str, Better]] = {**Task.better, "top_5_accuracy": "higher"}

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all classes while training."""

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy of each example [B], labels smoothed."""
        return cross_entropy(outputs, batch["label"], self.label_smoothing), batch["weight"]

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """`loss` (labels as they are), `accuracy`; `top_5_accuracy` of more than ten classes."""
        label, weight = batch["label"], batch["weight"]
        metrics = {
            "loss": (cross_entropy(outputs, label), weight),
            "accuracy": (_is_right(outputs, label), weight),
        }
        if outputs.shape[-1] > 10:
            best = jax.lax.top_k(outputs, 5)[1]  # [B, 5]
            found = jnp.any(best == label[:, None], axis=-1)
            metrics["top_5_accuracy"] = (found.astype(jnp.float32), weight)
        return metrics

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is one logit for each class."""
        check_shape("the model's outputs", outputs, "B K")
        if num_classes is not None and outputs.shape[-1] != num_classes:
            raise UserError(
                f"the data have {num_classes} classes, but the model has "
                f"{outputs.shape[-1]} outputs; set --model.num-classes {num_classes}"
            )


@dataclass(frozen=True, kw_only=True)
class LanguageModeling(Task):
    """Each token from those before it: the model's outputs at a token are for the next one.

    Of texts int32[B, T] with `lengths` only the real tokens count, and each as much as any other.
    """

    better: ClassVar[Mapping[str, Better]] = {**Task.better, "bits_per_token": "lower"}

    prompt: str | None = None
    """What `train` has the model continue at its end, as a sample."""

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy of each token after the first [B, T - 1]; padding has no weight."""
        return self.metrics(outputs, batch)["loss"]

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """`loss`, the same as `bits_per_token`, and `accuracy`."""
        logits, following = outputs[:, :-1], batch["inputs"][:, 1:]
        weights = jnp.broadcast_to(batch["weight"][:, None], following.shape)
        if "lengths" in batch:
            weights *= _is_real(following, batch["lengths"] - 1)
        losses = cross_entropy(logits, following)  # [B, T - 1]
        return {
            "loss": (losses, weights),
            "bits_per_token": (losses / math.log(2), weights),
            "accuracy": (_is_right(logits, following), weights),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        check_shape("the model's outputs", outputs, "B T V")


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Task):
    """A text for a text: `label` int32[B, S] follows the `targets` that the model reads by a token.

    Both are as long as `target_lengths` say; every real token counts as much as any other.
    """

    better: ClassVar[Mapping[str, Better]] = {**Task.better, "exact_match": "higher"}

    label_smoothing: float = 0.0
    """Share of the target's probability that is spread over all tokens while training."""

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy of each token [B, S], labels smoothed; padding has no weight."""
        losses = cross_entropy(outputs, batch["label"], self.label_smoothing)
        return losses, _token_weights(batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """`loss` and `accuracy` by token, and `exact_match` by text.

        A text matches where each of its tokens is the most likely one behind those before it,
        which is where writing the most likely token again and again writes just this text.
        """
        label, weights = batch["label"], _token_weights(batch)
        is_right = _is_right(outputs, label)
        matches = jnp.min(is_right, axis=-1, where=weights > 0, initial=1.0)  # [B]
        return {
            "loss": (cross_entropy(outputs, label), weights),
            "accuracy": (is_right, weights),
            "exact_match": (matches, batch["weight"]),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        check_shape("the model's outputs", outputs, "B S V")


def weighted(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """Losses times their weights; what has no weight does not count, not even as NaN."""
    return jnp.where(weights == 0, 0, losses * weights)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """The cross-entropy [...] of logits [..., K] with labels int[...], in at least float32.

    Args:
        logits: unnormalized log-probabilities.
        labels: the right classes.
        smoothing: share of the label's probability that is spread over all classes.

    Raises:
        UserError: if the labels are no integers, or of another shape than one for each row of
            logits.
    """
    if labels.shape != logits.shape[:-1]:
        raise UserError(
            f"label must have shape {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {list(labels.shape)}"
        )
    check_integers("label", labels)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing == 0.0:
        return losses
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform


def _is_right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, -1) == labels).astype(jnp.float32)


def _is_real(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Which of the tokens [B, T] come before int[B] lengths, as bool[B, T]."""
    return jnp.arange(tokens.shape[1]) < lengths[:, None]


def _token_weights(batch: Batch) -> jax.Array:
    """The weight of its text for each real target token, float32[B, S]."""
    return batch["weight"][:, None] * _is_real(batch["label"], batch["target_lengths"])


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
