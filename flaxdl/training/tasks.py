"""Training objectives: the loss and the metrics of a batch.

B: examples, K: classes, T: tokens, S: target tokens, V: vocabulary size.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxdl.checks import check_integers, check_shape
from flaxdl.errors import UserError
from flaxdl.training.class_weights import balanced, check_weights, in_class_order

Batch = Mapping[str, jax.Array]
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
            labels: labels of all training examples, [N, ...]; None if getting them requires reading
                every example.
            classes: class names; None if labels are not classes.

        Raises:
            UserError: if the labels do not fit the task.
        """
        return self

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
    for name in metrics:
        if not isinstance(name, str) or name in RESERVED_NAMES:
            raise UserError(
                f"{owner} must not name a metric {name!r}: names must be strings other than the "
                f"reserved {', '.join(RESERVED_NAMES)}"
            )


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Classification into K classes, with the cross-entropy loss."""

    better: ClassVar[Mapping[str, Better]] = {**Task.better, "top_5_accuracy": "higher"}

    label_smoothing: float = 0.0
    """Label smoothing factor, in [0, 1): fraction of the target probability that is spread
    uniformly over all classes in training."""
    class_weights: Literal["balanced"] | tuple[tuple[str, float], ...] | None = None
    """Weights of the classes in the training loss: pairs of class name and weight, one per class,
    or `balanced` for N / (K * count), computed from the training split: a class has `count` of its
    N examples. None for equal weights."""

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)
        if self.class_weights not in (None, "balanced"):
            check_weights(self.class_weights)

    def fit(self, labels: np.ndarray | None, classes: tuple[str, ...] | None) -> Self:
        """Returns the task with one weight per class, in the order of the classes."""
        if self.class_weights is None:
            return self
        if classes is None:
            raise UserError("class_weights need classes as labels; those of the data are not")
        if self.class_weights == "balanced":
            return replace(self, class_weights=balanced(labels, classes))
        return replace(self, class_weights=in_class_order(self.class_weights, classes))

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the cross-entropy of each example, with label smoothing, and its weight, [B].

        As in PyTorch, class weights also apply to the smoothed part, and the mean loss is divided
        by the sum of the weights of the labels or, for mixed examples, by their number.
        """
        label, weight = batch["label"], batch["weight"]
        if self.class_weights is None:
            return cross_entropy(outputs, label, self.label_smoothing), weight
        class_weights = self._class_weights(outputs)
        losses = cross_entropy(outputs, label, self.label_smoothing, class_weights)
        if "mix" in batch:
            return losses, weight
        return losses / class_weights[label], weight * class_weights[label]

    def _class_weights(self, outputs: jax.Array) -> jax.Array:
        """Returns the class weights, [K], which `fit` has put into the order of the classes."""
        if (
            not isinstance(self.class_weights, tuple)
            or len(self.class_weights) != outputs.shape[-1]
        ):
            raise UserError(
                f"class_weights must be {outputs.shape[-1]} pairs of class name and weight, got "
                f"{self.class_weights!r:.200}; call fit on the task first"
            )
        dtype = jnp.promote_types(outputs.dtype, jnp.float32)
        return jnp.array([weight for _, weight in self.class_weights], dtype)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns `loss` (without label smoothing), `accuracy` and `top_5_accuracy`.

        `top_5_accuracy` is computed only for more than ten classes.
        """
        label, weight = batch["label"], batch["weight"]
        metrics = {
            "loss": (cross_entropy(outputs, label), weight),
            "accuracy": (_is_correct(outputs, label), weight),
        }
        if outputs.shape[-1] > 10:
            best = jax.lax.top_k(outputs, 5)[1]  # [B, 5]
            found = jnp.any(best == label[:, None], axis=-1)
            metrics["top_5_accuracy"] = (found.astype(jnp.float32), weight)
        return metrics

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is one logit per class."""
        check_shape("the model's outputs", outputs, "B K")
        if num_classes is not None and outputs.shape[-1] != num_classes:
            raise UserError(
                f"the data have {num_classes} classes, but the model has "
                f"{outputs.shape[-1]} outputs; set --model.num-classes {num_classes}"
            )


@dataclass(frozen=True, kw_only=True)
class LanguageModeling(Task):
    """Next-token prediction: the model's outputs at a token are logits for the next token.

    Texts are `inputs`, int32[B, T]. Tokens after `lengths`, if given, are padding and have weight
    0, as do the first `burn_in` tokens of each text, int32[B], if given: they are only context. All
    other tokens of a batch have equal weight.
    """

    better: ClassVar[Mapping[str, Better]] = {**Task.better, "bits_per_token": "lower"}
    loss_fields = (*Task.loss_fields, "burn_in")

    prompt: str | None = None
    """Prompt for the sample text that `train` generates at the end; None for no sample."""

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the cross-entropy of each token except the first, and its weight, [B, T - 1]."""
        return self.metrics(outputs, batch)["loss"]

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns `loss`, `bits_per_token` (the loss in bits) and `accuracy`."""
        logits, following = outputs[:, :-1], batch["inputs"][:, 1:]
        weights = jnp.broadcast_to(batch["weight"][:, None], following.shape)
        if "lengths" in batch:
            weights *= _is_real(following, batch["lengths"] - 1)
        if "burn_in" in batch:
            weights *= ~_is_real(following, batch["burn_in"] - 1)
        losses = cross_entropy(logits, following)  # [B, T - 1]
        return {
            "loss": (losses, weights),
            "bits_per_token": (losses / math.log(2), weights),
            "accuracy": (_is_correct(logits, following), weights),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        check_shape("the model's outputs", outputs, "B T V")


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModeling(Task):
    """Prediction of masked tokens: the model's outputs at a token are logits for the original one.

    Only the positions `chosen`, bool[B, T], count, with equal weight in a batch; the original
    tokens are `label`, int32[B, T]. The transform `MaskedText` provides both. A batch without any
    chosen position, which only happens with a few tokens, has no loss and is skipped.
    """

    loss_fields = (*Task.loss_fields, "chosen", "words", "burn_in")

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the cross-entropy of each token and its weight, [B, T]."""
        return self.metrics(outputs, batch)["loss"]

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns `loss` and `accuracy` of the chosen tokens.

        Raises:
            UserError: if the batch does not contain the chosen positions, or if there is not a row
                of logits for each token.
        """
        if "chosen" not in batch:
            raise UserError(
                "masked language modeling needs the fields label and chosen in each batch, got "
                f"{', '.join(sorted(batch))}; use the transform MaskedText"
            )
        MaskedLanguageModeling.check(self, outputs, None)
        label, weights = batch["label"], batch["weight"][:, None] * batch["chosen"]
        return {
            "loss": (cross_entropy(outputs, label), weights),
            "accuracy": (_is_correct(outputs, label), weights),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        if isinstance(outputs, tuple):
            raise UserError(
                "MaskedLanguageModeling needs a model with one output, got "
                f"{len(outputs)}; use BertForMaskedLM, or the task BertPreTraining"
            )
        check_shape("the model's outputs", outputs, "B T V")


@dataclass(frozen=True, kw_only=True)
class BertPreTraining(MaskedLanguageModeling):
    """BERT's pretraining objective: masked language modeling plus next-sentence prediction.

    The model's outputs are those of `BertForPreTraining`. Training minimizes the sum of the mean
    loss of the chosen tokens and the mean next-sentence loss of the pairs of texts. The latter has
    the label `next_sentence_label`, int32[B], which the source `NextSentencePairs` provides.

    If a batch is divided (gradient accumulation, or `pmap`), each part has its own mean
    next-sentence loss, and counts according to its number of chosen tokens.
    """

    better: ClassVar[Mapping[str, Better]] = {**Task.better, "next_sentence_accuracy": "higher"}
    loss_fields = (*MaskedLanguageModeling.loss_fields, "next_sentence_label")

    def losses(self, outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the loss of each token plus the mean next-sentence loss, and weights, [B, T]."""
        losses, weights = super().metrics(outputs[0], batch)["loss"]
        pair_losses = cross_entropy(outputs[1], batch["next_sentence_label"])  # [B]
        pairs = jnp.sum(batch["weight"])
        mean = jnp.sum(weighted(pair_losses, batch["weight"])) / jnp.where(pairs == 0, 1, pairs)
        return losses + mean, weights

    def metrics(self, outputs: Any, batch: Batch) -> Metrics:
        """Returns `loss`, `accuracy` of the chosen tokens, and `next_sentence_accuracy`.

        For the metric, the loss of a chosen token is its own loss plus the next-sentence loss of
        its pair of texts, so that it does not depend on the batch size. It differs slightly from
        the minimized loss, in which all pairs have equal weight.

        Raises:
            UserError: if the batch lacks labels or chosen positions, or if the outputs do not fit.
        """
        if "next_sentence_label" not in batch:
            raise UserError(
                "BertPreTraining needs the field next_sentence_label in each batch, got "
                f"{', '.join(sorted(batch))}; use the source NextSentencePairs"
            )
        self.check(outputs, None)
        logits, pair_logits = outputs
        masked, label = super().metrics(logits, batch), batch["next_sentence_label"]
        losses, weights = masked["loss"]
        pair_losses = cross_entropy(pair_logits, label)[:, None]  # [B, 1]
        return {
            "loss": (losses + pair_losses, weights),
            "accuracy": masked["accuracy"],
            "next_sentence_accuracy": (_is_correct(pair_logits, label), batch["weight"]),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there are logits for each token and for each pair of texts."""
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise UserError(
                "BertPreTraining needs a model with the two outputs of BertForPreTraining, got "
                f"{jax.tree.map(lambda array: list(array.shape), outputs)}"
            )
        check_shape("the model's first output", outputs[0], "B T V")
        check_shape("the model's second output", outputs[1], "B K", K=2)


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Task):
    """Text-to-text tasks: the model predicts `label` from `inputs` and the decoder input `targets`.

    `label`, int32[B, S], is `targets` shifted by one token; both have the lengths `target_lengths`.
    Padding has weight 0; all other tokens of a batch have equal weight.
    """

    better: ClassVar[Mapping[str, Better]] = {**Task.better, "exact_match": "higher"}

    label_smoothing: float = 0.0
    """Label smoothing factor, in [0, 1): fraction of the target probability that is spread
    uniformly over all tokens of the vocabulary in training."""

    def __post_init__(self):
        _check_smoothing(self.label_smoothing)

    def losses(self, outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the cross-entropy of each token, with label smoothing, and its weight, [B, S]."""
        losses = cross_entropy(outputs, batch["label"], self.label_smoothing)
        return losses, _token_weights(batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """Returns `loss` and `accuracy` per token, and `exact_match` per text.

        A text matches if each of its tokens is the most likely one given the preceding tokens, that
        is, if greedy decoding generates exactly this text.
        """
        label, weights = batch["label"], _token_weights(batch)
        is_correct = _is_correct(outputs, label)
        matches = jnp.min(is_correct, axis=-1, where=weights > 0, initial=1.0)  # [B]
        return {
            "loss": (cross_entropy(outputs, label), weights),
            "accuracy": (is_correct, weights),
            "exact_match": (matches, batch["weight"]),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        check_shape("the model's outputs", outputs, "B S V")


def mixed(
    losses: Callable[[Any, Batch], tuple[jax.Array, jax.Array]], outputs: Any, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Returns losses and weights of a batch in which examples may be mixed (mixup or cutmix).

    The loss of a mixed example is `mix * loss(label) + (1 - mix) * loss(label_2)`. For
    cross-entropy, also with label smoothing, that is the loss for the mixed probabilities. Where
    weights depend on the label, each of the two losses has its own.

    Args:
        losses: function of outputs and batch that returns losses and weights of equal shape, such
            as `Task.losses`.
        outputs: outputs of the model.
        batch: examples; without `mix`, they are not mixed.
    """
    first, weights = losses(outputs, batch)
    if "mix" not in batch:
        return first, weights
    second, weights_2 = losses(outputs, {**batch, "label": batch["label_2"]})
    mix = batch["mix"].reshape(-1, *(1,) * (first.ndim - 1))
    total = weights + (1 - mix) * (weights_2 - weights)  # exact for equal weights
    summed = mix * weighted(first, weights) + (1 - mix) * weighted(second, weights_2)
    return summed / jnp.where(total == 0, 1, total), total


def weighted(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns losses times weights; a weight of 0 yields 0 even if the loss is NaN."""
    return jnp.where(weights == 0, 0, losses * weights)


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    class_weights: jax.Array | None = None,
) -> jax.Array:
    """Returns the cross-entropy [...], computed in float32 or higher precision.

    Args:
        logits: unnormalized log-probabilities, [..., K].
        labels: target classes, int[...].
        smoothing: label smoothing factor, in [0, 1): fraction of the target probability that is
            spread uniformly over all classes.
        class_weights: weights of the classes, [K], by which each class's term is multiplied.

    Raises:
        UserError: if the labels are not integers, or if there is not one label per row of logits.
    """
    if labels.shape != logits.shape[:-1]:
        raise UserError(
            f"label must have shape {list(logits.shape[:-1])} for logits {list(logits.shape)}, "
            f"got {list(labels.shape)}"
        )
    check_integers("label", labels)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if class_weights is not None:
        losses *= class_weights[labels]
    if smoothing == 0.0:
        return losses
    log_probabilities = jax.nn.log_softmax(logits)
    if class_weights is not None:
        log_probabilities *= class_weights
    uniform = -jnp.mean(log_probabilities, axis=-1)
    return (1 - smoothing) * losses + smoothing * uniform


def _is_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return (jnp.argmax(logits, -1) == labels).astype(jnp.float32)


def _is_real(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the mask, bool[B, T], of non-padding tokens [B, T], given lengths int[B]."""
    return jnp.arange(tokens.shape[1]) < lengths[:, None]


def _token_weights(batch: Batch) -> jax.Array:
    """Returns target weights, float32[B, S]: the weight of the example, or 0 for padding."""
    return batch["weight"][:, None] * _is_real(batch["label"], batch["target_lengths"])


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
