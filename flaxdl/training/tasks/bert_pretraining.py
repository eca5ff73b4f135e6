"""BERT's pretraining objective.

B: pairs of texts, K: 2, T: tokens, V: vocabulary size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape
from flaxdl.errors import UserError
from flaxdl.training.tasks.losses import Batch, cross_entropy, is_correct, weighted
from flaxdl.training.tasks.masked_language_modeling import MaskedLanguageModeling
from flaxdl.training.tasks.task import Better, Metrics, Task


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
            "next_sentence_accuracy": (is_correct(pair_logits, label), batch["weight"]),
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
