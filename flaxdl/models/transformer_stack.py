"""Encoder and decoder stacks of the models in `flaxdl.models.transformer`.

Legend: B batch, T source tokens, S target tokens, D features.
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
    drop_path_rates,
)
from flaxdl.models.options import shared_options
from flaxdl.models.sizes import required_size


class TransformerOptions(nn.Module, kw_only=True):
    """Options shared by the Transformer models and their encoders and decoders."""

    vocab_size: int | None
    """Vocabulary size; inferred from the data if None."""
    hidden_size: int = 512
    """Number of features per token (D)."""
    num_heads: int = 8
    """Number of attention heads."""
    num_layers: int = 6
    """Number of layers in the encoder, and in the decoder if there is one."""
    feed_forward_size: int = 2048
    """Hidden width of the feed-forward network."""
    dropout: float = 0.1
    """Dropout rate for embeddings, attention weights, activations and sublayer outputs."""
    drop_path_rate: float = 0.0
    """Drop path rate (stochastic depth) of the last layer, linear from 0 in the first layer; in the
    encoder, and also in the decoder if there is one."""
    activation: Literal["relu", "gelu"] = "relu"
    """Activation function of the feed-forward network."""
    norm_first: bool = False
    """Normalize before each sublayer (pre-norm) instead of after it (post-norm)."""
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    """Type of positional encodings added to the token embeddings."""
    max_length: int = 512
    """Maximum sequence length (number of positions)."""
    remat: bool = False
    """Gradient checkpointing: recompute each layer in the backward pass to save memory."""

    tensor_axes: ClassVar[dict[str, int]] = {
        **TransformerEncoderLayer.tensor_axes,
        "*embedding.weight": 0,
    }

    def embed(self, tokens: jax.Array, train: bool, position: jax.Array | None) -> jax.Array:
        """Maps tokens int32[B, T] to embeddings [B, T, D] with positional encodings.

        Positions start at `position`, or at 0 if it is None. Embeddings are initialized from a
        standard normal distribution; the paper reaches the same scale by multiplying smaller
        embeddings by √D.
        """
        x = Embedding(
            required_size("vocab_size", self.vocab_size),
            required_size("hidden_size", self.hidden_size),
            name="embedding",
        )(tokens)
        add_positions = AddPositions(self.positions, self.max_length, name="position_embedding")
        x = add_positions(x, 0 if position is None else position)
        return Dropout(self.dropout, name="embedding_dropout")(x, train)


class Encoder(TransformerOptions, kw_only=True):
    """Embedding, encoder layers and a final norm (necessary for pre-norm layers)."""

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
            Layer = nn.remat(Layer, static_argnums=3)  # train; argument 0 is the module itself
        for i, rate in enumerate(drop_path_rates(self.drop_path_rate, self.num_layers)):
            layer = Layer(**options, drop_path=rate, name=f"layers.{i}")
            x = layer(x, mask, train, position)
        return LayerNorm(name="norm")(x)


class Decoder(TransformerOptions, kw_only=True):
    """Embedding, decoder layers and a final norm."""

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
        """Maps tokens int32[B, S] and the encoder's memory [B, T, D] to [B, S, D]."""
        check_shape("targets", tokens, "B S", B=memory.shape[0])
        x = self.embed(tokens, train, position)
        Layer, options = TransformerDecoderLayer, shared_options(self, TransformerDecoderLayer)
        if self.remat:
            Layer = nn.remat(Layer, static_argnums=5)  # train; argument 0 is the module itself
        for i, rate in enumerate(drop_path_rates(self.drop_path_rate, self.num_layers)):
            layer = Layer(**options, drop_path=rate, name=f"layers.{i}")
            x = layer(x, memory, mask, memory_mask, train, position)
        return LayerNorm(name="norm")(x)
