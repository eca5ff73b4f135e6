"""Text-to-text tasks.

B: texts, S: target tokens, V: vocabulary size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape
from flaxdl.training.tasks.losses import Batch, check_smoothing, cross_entropy, is_correct, is_real
from flaxdl.training.tasks.task import Better, Metrics, Task


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
        check_smoothing(self.label_smoothing)

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
        correct = is_correct(outputs, label)
        matches = jnp.min(correct, axis=-1, where=weights > 0, initial=1.0)  # [B]
        return {
            "loss": (cross_entropy(outputs, label), weights),
            "accuracy": (correct, weights),
            "exact_match": (matches, batch["weight"]),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        check_shape("the model's outputs", outputs, "B S V")


def _token_weights(batch: Batch) -> jax.Array:
    """Returns target weights, float32[B, S]: the weight of the example, or 0 for padding."""
    return batch["weight"][:, None] * is_real(batch["label"], batch["target_lengths"])
