"""Transformers for texts: a classifier, a language model, and the original encoder-decoder.

Vaswani et al., "Attention Is All You Need", 2017. Layers are named as in `torch.nn.Transformer`:
`encoder.layers.0`, `encoder.norm`, `decoder.layers.0`, `decoder.norm`.

Legend: B batch, T tokens, S target tokens, D features, V vocabulary, C classes.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_shape
from flaxdl.layers import Linear, causal_mask, padding_mask, token_mask
from flaxdl.models.options import shared_options
from flaxdl.models.sizes import required_size
from flaxdl.models.transformer_stack import Decoder, Encoder, TransformerOptions


class TransformerClassifier(TransformerOptions, kw_only=True):
    """Text classifier: a Transformer encoder, pooling and a linear layer."""

    num_classes: int | None
    """Number of classes; inferred from the data if None."""
    pooling: Literal["mean", "first"] = "mean"
    """Pooling of the encoder's outputs: `mean` (over non-padding tokens) or `first` (the first
    token, such as [CLS])."""

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

        Padding is specified by either `lengths` int32[B] or `mask` bool[B, T], False for padding;
        by default, there is no padding.

        Raises:
            UserError: if shapes do not match, tokens are not integers, or a text is longer than
                `max_length`.
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
        return Linear(required_size("num_classes", self.num_classes), name="fc")(features)


class TransformerLM(TransformerOptions, kw_only=True):
    """Autoregressive language model: encoder layers with a causal mask predict the next token.

    Use `flaxdl.models.generate` to generate text.
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
        """Maps tokens int32[B, T] to logits [B, T, V] of the next tokens.

        Padding after a text does not affect its logits, with or without `lengths` int32[B]. For
        incremental decoding, `position` is the position of the first token; keys and values of
        earlier tokens are read from the collection "cache", as described in
        `PackedMultiHeadAttention`.

        Raises:
            UserError: if shapes do not match, tokens are not integers, or a text is longer than
                `max_length`.
        """
        check_shape("tokens", tokens, "B T")
        mask = causal_mask(tokens.shape[1])
        if lengths is not None:
            mask = mask & padding_mask(lengths, tokens.shape[1])
        encoder = Encoder(**shared_options(self, Encoder), name="encoder")
        x = encoder(tokens, mask, train, position)
        return Linear(required_size("vocab_size", self.vocab_size), name="fc")(x)


class Seq2SeqTransformer(TransformerOptions, kw_only=True):
    """The original encoder-decoder Transformer, for sequence-to-sequence tasks.

    Use `flaxdl.models.translate` to generate outputs.
    """

    target_vocab_size: int | None = None
    """Vocabulary size of the targets; by default, `vocab_size`."""

    def setup(self) -> None:
        """Creates the encoder, the decoder and the output layer."""
        target_vocab_size = self.target_vocab_size
        if target_vocab_size is None:
            target_vocab_size = required_size("vocab_size", self.vocab_size)
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

        The targets are the inputs of the decoder and begin with a start token; the logits at each
        target predict the next one. `lengths` and `target_lengths`, int32[B], are the numbers of
        non-padding tokens; by default, there is no padding.

        Raises:
            UserError: if shapes do not match, tokens are not integers, or a text is longer than
                `max_length`.
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
        """Maps inputs int32[B, T] to the memory [B, T, D] and its padding mask."""
        mask = token_mask(inputs, lengths, None)
        return self.encoder(inputs, mask, train), mask

    def decode(
        self,
        targets: jax.Array,
        memory: jax.Array,
        mask: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        train: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps targets int32[B, S] and the memory [B, T, D] to logits [B, S, V].

        `mask` applies to the targets, `memory_mask` to the memory. For incremental decoding,
        `position` is used as in `TransformerLM`.
        """
        return self.fc(self.decoder(targets, memory, mask, memory_mask, train, position))
