"""Encoder and decoder over tokens, of which the models in `flaxdl.models.transformer` are made.

Legend: B batch, T tokens, S target tokens, D features.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax

from flaxdl.checks import check_shape
from flaxdl.layers import (
    AddPositions,
    Dropout,
    Embedding,
    LayerNorm,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from flaxdl.models.options import shared_options
from flaxdl.models.sizes import known_size


class TransformerOptions(nn.Module, kw_only=True):
    """The options that all the models here have, and hand to their parts."""

    vocab_size: int | None
    """Number of tokens; None takes it from the data of a run."""
    hidden_size: int = 512
    """Features of every token, D."""
    num_heads: int = 8
    """Number of heads of each attention."""
    num_layers: int = 6
    """Layers of the encoder, and of the decoder if there is one."""
    feed_forward_size: int = 2048
    """Features between the two linear maps of a layer."""
    dropout: float = 0.1
    """Share zeroed in training: of embeddings, attention weights, activations, what layers add."""
    activation: Literal["relu", "gelu"] = "relu"
    """What lies between the two linear maps of a layer."""
    norm_first: bool = False
    """Whether to normalize before each sublayer (pre-norm) instead of after it."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """What is added to an embedding for the place of its token."""
    max_length: int = 512
    """Number of positions, so the longest sequence."""
    remat: bool = False
    """Whether layers keep only their input for the backward pass, and are computed anew there."""

    tensor_axes: ClassVar[dict[str, int]] = {
        **TransformerEncoderLayer.tensor_axes,
        "*embedding.weight": 0,
    }

    def embed(self, tokens: jax.Array, train: bool, position: jax.Array | None) -> jax.Array:
        """Maps int32[B, T] to [B, T, D], with the positions from `position` (or 0) on.

        Embeddings are standard normal to begin with, which is the scale that the paper gets from
        smaller ones times √D.
        """
        x = Embedding(
            known_size("vocab_size", self.vocab_size),
            known_size("hidden_size", self.hidden_size),
            name="embedding",
        )(tokens)
        add_positions = AddPositions(self.positions, self.max_length, name="position_embedding")
        x = add_positions(x, 0 if position is None else position)
        return Dropout(self.dropout, name="embedding_dropout")(x, train)


class Encoder(TransformerOptions, kw_only=True):
    """Embedding, encoder layers, and a last norm, which pre-norm layers need."""

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array | None,
        train: bool,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps tokens int32[B, T] to [B, T, D]."""
        check_shape("tokens", tokens, "B T")
        x = self.embed(tokens, train, position)
        Layer, options = TransformerEncoderLayer, shared_options(self, TransformerEncoderLayer)
        if self.remat:
            Layer = nn.remat(Layer, static_argnums=3)  # train; the module itself is 0
        for i in range(self.num_layers):
            layer = Layer(**options, name=f"layers.{i}")
            x = layer(x, mask, train, position)
        return LayerNorm(name="norm")(x)


class Decoder(TransformerOptions, kw_only=True):
    """Embedding, decoder layers, and a last norm."""

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        memory: jax.Array,
        mask: jax.Array | None,
        memory_mask: jax.Array | None,
        train: bool,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps tokens int32[B, S], and what the encoder made of others [B, T, D], to [B, S, D]."""
        check_shape("targets", tokens, "B S", B=memory.shape[0])
        x = self.embed(tokens, train, position)
        Layer, options = TransformerDecoderLayer, shared_options(self, TransformerDecoderLayer)
        if self.remat:
            Layer = nn.remat(Layer, static_argnums=5)  # train; the module itself is 0
        for i in range(self.num_layers):
            layer = Layer(**options, name=f"layers.{i}")
            x = layer(x, memory, mask, memory_mask, train, position)
        return LayerNorm(name="norm")(x)
