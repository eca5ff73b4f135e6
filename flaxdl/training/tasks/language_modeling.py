"""Next-token prediction.

B: texts, T: tokens, V: vocabulary size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape
from flaxdl.training.tasks.losses import Batch, cross_entropy, is_correct, is_real
from flaxdl.training.tasks.task import Better, Metrics, Task


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
            weights *= is_real(following, batch["lengths"] - 1)
        if "burn_in" in batch:
            weights *= ~is_real(following, batch["burn_in"] - 1)
        losses = cross_entropy(logits, following)  # [B, T - 1]
        return {
            "loss": (losses, weights),
            "bits_per_token": (losses / math.log(2), weights),
            "accuracy": (is_correct(logits, following), weights),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        check_shape("the model's outputs", outputs, "B T V")
