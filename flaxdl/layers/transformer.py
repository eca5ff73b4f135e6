"""The blocks that transformers stack: the document's, and PyTorch's encoder and decoder layers.

Legend: B batch, T steps, S steps of the memory that a decoder looks at, D features; masks are those
of `flaxdl.layers.attention`.

All add what a sublayer makes of its input to that input. Post-norm, as in 2017, normalizes the sum;
pre-norm normalizes what the sublayer reads, which leaves a path without norms from the first layer
to the last, trains without warm-up, and wants one norm after the last layer.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from flaxdl.checks import check_choice, check_shape
from flaxdl.layers.attention import MultiHeadAttention, PackedMultiHeadAttention
from flaxdl.layers.dropout import Dropout
from flaxdl.layers.linear import Linear
from flaxdl.layers.normalization import LayerNorm
from flaxdl.ops.activations import ACTIVATIONS, gelu


class TransformerLayer(nn.Module):
    """What all the blocks share: their sizes, and the way a sublayer's result is added."""

    hidden_size: int = 512
    """Features of every step, D."""
    num_heads: int = 8
    """Number of heads of each attention."""
    feed_forward_size: int = 2048
    """Features between the two linear maps that follow attention."""
    dropout: float = 0.1
    """Share of what each sublayer adds that is zeroed in training."""
    norm_first: bool = False
    """Whether to normalize before each sublayer (pre-norm) instead of after it."""

    def add_and_norm(
        self, x: jax.Array, sublayer: Callable[[jax.Array], jax.Array], number: int, train: bool
    ) -> jax.Array:
        """Adds to x [B, T, D] what the sublayer, counted from 1, makes of it."""
        norm = LayerNorm(name=f"norm{number}")
        dropout = Dropout(self.dropout, name=f"dropout{number}")
        if self.norm_first:
            return x + dropout(sublayer(norm(x)), train)
        return norm(x + dropout(sublayer(x), train))


class TransformerBlock(TransformerLayer):
    """The document's block: self-attention, then two linear maps with a GELU between them."""

    tensor_axes: ClassVar[dict[str, int]] = {
        **MultiHeadAttention.tensor_axes,
        "*ff.0.*": 0,
        "*ff.2.weight": 1,
    }

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]; the mask says which steps each step may look at.

        Raises:
            UserError: if sizes do not fit, or the heads do not divide the features.
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
    """`torch.nn.TransformerEncoderLayer`: self-attention, then two linear maps.

    Dropout acts on attention weights and activations, too. With a causal mask this is the layer of
    a language model, which can read step by step: `position` and the collection "cache" are those
    of `PackedMultiHeadAttention`.
    """

    activation: Literal["relu", "gelu"] = "relu"
    """What lies between the two linear maps; the GELU is the exact one."""

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
        """Lets queries [B, T, D] look at memory [B, S, D]."""
        attn = PackedMultiHeadAttention(self.hidden_size, self.num_heads, self.dropout, name=name)
        return attn(query, memory, memory, mask, train, position)

    def feed_forward(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps each step of [B, T, D] by itself."""
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
        """Maps [B, T, D] to [B, T, D]; the mask says which steps each step may look at.

        Raises:
            UserError: if sizes do not fit, or the heads do not divide the features.
        """
        check_shape("inputs", inputs, "B T D", D=self.hidden_size)

        def attend_self(x: jax.Array) -> jax.Array:
            return self.attend(x, x, mask, train, position, name="self_attn")

        x = self.add_and_norm(inputs, attend_self, 1, train)
        return self.add_and_norm(x, lambda x: self.feed_forward(x, train), 2, train)


class TransformerDecoderLayer(TransformerEncoderLayer):
    """`torch.nn.TransformerDecoderLayer`: between the two sublayers it looks at a memory."""

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
        """Maps [B, T, D] to [B, T, D], looking at memory [B, S, D].

        The mask says which steps each step may look at (a causal one, as a rule), the memory mask
        which parts of the memory.

        Raises:
            UserError: if sizes do not fit, or the heads do not divide the features.
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
