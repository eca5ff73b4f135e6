"""Prediction of masked tokens.

B: texts, T: tokens, V: vocabulary size.
"""

from dataclasses import dataclass
from typing import Any

import jax

from flaxdl.checks import check_shape
from flaxdl.errors import UserError
from flaxdl.training.tasks.losses import Batch, cross_entropy, is_correct
from flaxdl.training.tasks.task import Metrics, Task


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
            "accuracy": (is_correct(outputs, label), weights),
        }

    def check(self, outputs: Any, num_classes: int | None) -> None:
        """Checks that there is a row of logits for each token."""
        if isinstance(outputs, tuple):
            raise UserError(
                "MaskedLanguageModeling needs a model with one output, got "
                f"{len(outputs)}; use BertForMaskedLM, or the task BertPreTraining"
            )
        check_shape("the model's outputs", outputs, "B T V")
