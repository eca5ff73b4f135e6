"""Transformers over tokens: a classifier, a language model, and the encoder-decoder of 2017.

Vaswani et al., "Attention Is All You Need", 2017. The layers carry the names of
`torch.nn.Transformer`: `encoder.layers.0`, `encoder.norm`, `decoder.layers.0`, `decoder.norm`.

Legend: B batch, T tokens, S target tokens, D features, V vocabulary, C classes.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_shape
from flaxdl.layers import Linear, causal_mask, padding_mask, token_mask
from flaxdl.models.options import shared_options
from flaxdl.models.sizes import known_size
from flaxdl.models.transformer_stack import Decoder, Encoder, TransformerOptions


class TransformerClassifier(TransformerOptions, kw_only=True):
    """Classifies texts from the mean of what the encoder makes of their tokens."""

    num_classes: int | None
    """Size of the logits; None takes it from the data of a run."""
    pooling: Literal["mean", "first"] = "mean"
    """What is classified: the mean over the real tokens, or the first, where BERT puts [CLS]."""

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, C].

        Lengths int32[B] or a mask bool[B, T] say which tokens are real; all of them without.

        Raises:
            UserError: if shapes do not fit, tokens are not integers or more than `max_length`.
        """
        check_choice("pooling", self.pooling, ("mean", "first"))
        check_shape("tokens", tokens, "B T")
        keep = token_mask(tokens, lengths, mask)
        encoder = Encoder(**shared_options(self, Encoder), name="encoder")
        x = encoder(tokens, keep, train)
        if self.pooling == "first":
            features = x[:, 0]
        else:
            is_real = jnp.ones(tokens.shape, bool) if keep is None else keep[:, 0, 0]
            wide = jnp.promote_types(x.dtype, jnp.float32)
            total = jnp.sum(x, axis=1, where=is_real[:, :, None], dtype=wide)  # [B, D]
            count = jnp.maximum(is_real.sum(1, keepdims=True), 1)
            features = (total / count).astype(x.dtype)
        return Linear(known_size("num_classes", self.num_classes), name="fc")(features)


class TransformerLM(TransformerOptions, kw_only=True):
    """Predicts each next token from those before it: encoder layers under a causal mask.

    `flaxdl.models.generate` continues texts with it.
    """

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        *,
        lengths: jax.Array | None = None,
        train: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, T, V], each for the token that follows.

        Padding behind a text has no effect on it, with lengths int32[B] or without. Given a
        `position`, the tokens are those from there on, and the earlier ones are in the collection
        "cache", as `PackedMultiHeadAttention` describes.

        Raises:
            UserError: if shapes do not fit, tokens are not integers or more than `max_length`.
        """
        check_shape("tokens", tokens, "B T")
        mask = causal_mask(tokens.shape[1])
        if lengths is not None:
            mask = mask & padding_mask(lengths, tokens.shape[1])
        encoder = Encoder(**shared_options(self, Encoder), name="encoder")
        x = encoder(tokens, mask, train, position)
        return Linear(known_size("vocab_size", self.vocab_size), name="fc")(x)


class Seq2SeqTransformer(TransformerOptions, kw_only=True):
    """The encoder-decoder of 2017: rewrites one sequence of tokens as another.

    `flaxdl.models.translate` writes with it.
    """

    target_vocab_size: int | None = None
    """Number of tokens on the other side; `vocab_size` if None."""

    def setup(self) -> None:
        """Creates encoder, decoder, and the map to logits."""
        target_vocab_size = self.target_vocab_size
        if target_vocab_size is None:
            target_vocab_size = known_size("vocab_size", self.vocab_size)
        self.encoder = Encoder(**shared_options(self, Encoder))
        self.decoder = Decoder(**{**shared_options(self, Decoder), "vocab_size": target_vocab_size})
        self.fc = Linear(target_vocab_size)

    def __call__(
        self,
        inputs: jax.Array,
        *,
        targets: jax.Array,
        lengths: jax.Array | None = None,
        target_lengths: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Maps inputs int32[B, T] and targets int32[B, S] to logits [B, S, V].

        The targets are what the decoder reads, so they begin with a start token; the logits at a
        target are for the one that follows it. Lengths int32[B] say which tokens are real.

        Raises:
            UserError: if shapes do not fit, tokens are not integers or more than `max_length`.
        """
        check_shape("targets", targets, "B S")
        memory, memory_mask = self.encode(inputs, lengths, train)
        mask = causal_mask(targets.shape[1])
        if target_lengths is not None:
            mask = mask & padding_mask(target_lengths, targets.shape[1])
        return self.decode(targets, memory, mask, memory_mask, train)

    def encode(
        self, inputs: jax.Array, lengths: jax.Array | None, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps inputs int32[B, T] to the memory [B, T, D] and the mask of its real tokens."""
        mask = token_mask(inputs, lengths, None)
        return self.encoder(inputs, mask, train), mask

    def decode(
        self,
        targets: jax.Array,
        memory: jax.Array,
        mask: jax.Array | None,
        memory_mask: jax.Array | None,
        train: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps targets int32[B, S], at `position` as in `TransformerLM`, to logits [B, S, V]."""
        return self.fc(self.decoder(targets, memory, mask, memory_mask, train, position))
