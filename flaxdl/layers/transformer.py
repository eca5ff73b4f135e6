"""Transformer layers: a pre-norm block, and PyTorch's encoder and decoder layers.

Legend: B batch, T steps, S steps of the memory that a decoder attends to, D features.

Masks are described in `flaxdl.ops.masks`.

Each sublayer has a residual connection. Post-norm, as in the original Transformer, normalizes after
the addition. Pre-norm normalizes the input of the sublayer, so that the residual path contains no
norms. It trains without warmup, but needs a final norm after the last layer.
"""

from collections.abc import Callable
from dataclasses import field
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from flaxdl.checks import check_choice, check_shape
from flaxdl.layers.attention import MultiHeadAttention, PackedMultiHeadAttention
from flaxdl.layers.dropout import Dropout, DropPath
from flaxdl.layers.linear import Linear
from flaxdl.layers.normalization import LayerNorm
from flaxdl.ops.activations import ACTIVATIONS, gelu


class TransformerLayer(nn.Module):
    """Base class of the Transformer layers: options, residual connections and norms."""

    hidden_size: int = 512
    """Number of features per step (D)."""
    num_heads: int = 8
    """Number of attention heads."""
    feed_forward_size: int = 2048
    """Hidden width of the feed-forward network."""
    dropout: float = 0.1
    """Dropout rate for the output of each sublayer."""
    norm_first: bool = False
    """Normalize before each sublayer (pre-norm) instead of after it (post-norm)."""
    drop_path: float = field(default=0.0, kw_only=True)
    """Probability of dropping the output of each sublayer for an example, as in `DropPath`."""

    def add_and_norm(
        self, x: jax.Array, sublayer: Callable[[jax.Array], jax.Array], number: int, train: bool
    ) -> jax.Array:
        """Applies a sublayer, with dropout, drop path, residual connection and norm.

        Args:
            x: [B, T, D].
            sublayer: callable that maps [B, T, D] to [B, T, D].
            number: number of the sublayer, from 1, as in the names of its norm and dropout.
            train: whether to apply dropout and drop path.

        Returns:
            [B, T, D].
        """
        norm = LayerNorm(name=f"norm{number}")
        dropout = Dropout(self.dropout, name=f"dropout{number}")
        drop_path = DropPath(self.drop_path, name=f"drop_path{number}")
        if self.norm_first:
            return x + drop_path(dropout(sublayer(norm(x)), train), train)
        return norm(x + drop_path(dropout(sublayer(x), train), train))


class TransformerBlock(TransformerLayer):
    """Transformer block: self-attention and a feed-forward network with GELU."""

    tensor_axes: ClassVar[dict[str, int]] = {
        **MultiHeadAttention.tensor_axes,
        "*ff.0.*": 0,
        "*ff.2.weight": 1,
    }

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `mask` selects the steps that each step may attend to.

        Raises:
            UserError: if shapes do not match, or `num_heads` does not divide `hidden_size`.
        """
        check_shape("inputs", inputs, "B T D", D=self.hidden_size)

        def attend(x: jax.Array) -> jax.Array:
            attn = MultiHeadAttention(self.hidden_size, self.num_heads, name="attn")
            return attn(x, x, x, mask)

        def feed_forward(x: jax.Array) -> jax.Array:
            x = gelu(Linear(self.feed_forward_size, name="ff.0")(x))
            return Linear(self.hidden_size, name="ff.2")(x)

        x = self.add_and_norm(inputs, attend, 1, train)
        return self.add_and_norm(x, feed_forward, 2, train)


class TransformerEncoderLayer(TransformerLayer):
    """Equivalent of `torch.nn.TransformerEncoderLayer`: self-attention and feed-forward network.

    Dropout is also applied to attention weights and activations. With a causal mask, the layer can
    be used in a language model. It supports incremental decoding with `position` and the collection
    "cache", as described in `PackedMultiHeadAttention`.
    """

    activation: Literal["relu", "gelu"] = "relu"
    """Activation function of the feed-forward network; `gelu` is the exact GELU."""

    tensor_axes: ClassVar[dict[str, int]] = {
        **PackedMultiHeadAttention.tensor_axes,
        "*linear1.*": 0,
        "*linear2.weight": 1,
    }

    def attend(
        self,
        query: jax.Array,
        memory: jax.Array,
        mask: jax.Array | None,
        train: bool,
        position: jax.Array | None = None,
        *,
        name: str,
    ) -> jax.Array:
        """Applies attention with queries from [B, T, D], and keys and values from [B, S, D]."""
        attn = PackedMultiHeadAttention(self.hidden_size, self.num_heads, self.dropout, name=name)
        return attn(query, memory, memory, mask, train, position)

    def feed_forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the feed-forward network to each step of [B, T, D]."""
        check_choice("activation", self.activation, ACTIVATIONS)
        x = Linear(self.feed_forward_size, name="linear1")(x)
        x = Dropout(self.dropout, name="dropout")(ACTIVATIONS[self.activation](x), train)
        return Linear(self.hidden_size, name="linear2")(x)

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; `mask` selects the steps that each step may attend to.

        Raises:
            UserError: if shapes do not match, or `num_heads` does not divide `hidden_size`.
        """
        check_shape("inputs", inputs, "B T D", D=self.hidden_size)

        def attend_self(x: jax.Array) -> jax.Array:
            return self.attend(x, x, mask, train, position, name="self_attn")

        x = self.add_and_norm(inputs, attend_self, 1, train)
        return self.add_and_norm(x, lambda x: self.feed_forward(x, train), 2, train)


class TransformerDecoderLayer(TransformerEncoderLayer):
    """Equivalent of `torch.nn.TransformerDecoderLayer`: an encoder layer with cross-attention."""

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        memory: jax.Array,
        mask: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        train: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D], with cross-attention to memory [B, S, D].

        `mask` selects the steps that each step may attend to and is usually causal; `memory_mask`
        selects steps of the memory.

        Raises:
            UserError: if shapes do not match, or `num_heads` does not divide `hidden_size`.
        """
        check_shape("inputs", inputs, "B T D", D=self.hidden_size)
        check_shape("memory", memory, "B S D", B=inputs.shape[0], D=self.hidden_size)

        def attend_self(x: jax.Array) -> jax.Array:
            return self.attend(x, x, mask, train, position, name="self_attn")

        def attend_memory(x: jax.Array) -> jax.Array:
            return self.attend(x, memory, memory_mask, train, name="multihead_attn")

        x = self.add_and_norm(inputs, attend_self, 1, train)
        x = self.add_and_norm(x, attend_memory, 2, train)
        return self.add_and_norm(x, lambda x: self.feed_forward(x, train), 3, train)
