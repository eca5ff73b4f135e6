"""Losses of examples and tokens, and their weights.

K: classes, T: tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxdl.checks import check_integers, check_shape
from flaxdl.errors import UserError

Batch = Mapping[str, jax.Array]
POINT_LOSSES: Mapping[str, Callable[[jax.Array, float], jax.Array]] = {
    "mse": lambda error, delta: jnp.square(error),
    "mae": lambda error, delta: jnp.abs(error),
    "huber": lambda error, delta: optax.huber_loss(error, delta=delta),
}
"""Losses of an error, given the delta of the Huber loss."""


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


def is_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns 1 where the largest of the logits [..., K] is that of the label [...], else 0."""
    return (jnp.argmax(logits, -1) == labels).astype(jnp.float32)


def is_real(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Returns the mask, bool[B, T], of non-padding tokens [B, T], given lengths int[B]."""
    return jnp.arange(tokens.shape[1]) < lengths[:, None]


def check_smoothing(label_smoothing: float) -> None:
    """Checks a label smoothing factor.

    Raises:
        UserError: if it is not in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"label_smoothing must be in [0, 1), got {label_smoothing}")


def check_logits(outputs: Any, num_classes: int | None) -> None:
    """Checks that the model's outputs are one logit per example and class, [B, K].

    Args:
        outputs: outputs of the model, or their shapes and dtypes.
        num_classes: number of classes in the data; None if it is unknown.

    Raises:
        UserError: if they have another shape, or if their number is not that of the classes.
    """
    check_shape("the model's outputs", outputs, "B K")
    if num_classes is not None and outputs.shape[-1] != num_classes:
        raise UserError(
            f"the data have {num_classes} classes, but the model has "
            f"{outputs.shape[-1]} outputs; set --model.num-classes {num_classes}"
        )
