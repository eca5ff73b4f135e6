"""Recurrent classifiers for sequences of vectors and for texts.

Legend: B batch, T time, I input size, E embedding size, H hidden size, C classes.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_shape
from flaxdl.layers import GRU, LSTM, RNN, Embedding, Linear
from flaxdl.models.sizes import required_size
from flaxdl.ops.recurrence import hidden

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class SimpleRNN(nn.Module):
    """Sequence classifier: recurrent layers and a linear layer on the last output.

    For example, an image can be classified as the sequence of its rows.
    """

    hidden_size: int
    """Size of the hidden state."""
    num_classes: int | None
    """Number of classes; inferred from the data if None."""
    cell: Literal["rnn", "lstm", "gru"] = "rnn"
    """Type of the recurrent layers."""
    num_layers: int = 1
    """Number of stacked recurrent layers."""
    dropout: float = 0.0
    """Dropout rate between recurrent layers."""

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps sequences [B, T, I] with `lengths` int32[B] to logits [B, C].

        Raises:
            UserError: if shapes do not match.
        """
        check_choice("cell", self.cell, CELLS)
        rnn = CELLS[self.cell](
            required_size("hidden_size", self.hidden_size),
            num_layers=self.num_layers,
            dropout=self.dropout,
            name="rnn",
        )
        _, final_state = rnn(inputs, lengths=lengths, train=train)
        # The final state of the last layer is its output at the last non-padding step.
        return Linear(required_size("num_classes", self.num_classes), name="fc")(
            hidden(final_state)[-1]
        )


class TextRNN(nn.Module):
    """Text classifier: embedding, bidirectional recurrent layers and a linear layer.

    Token 0 is padding; its embedding is zero and is not trained.

    By default, the outputs at the last time step are classified. With `lengths`,
    this is the last non-padding token; without, it may be padding. At this step, the backward
    direction has read only one token. With `pooling="final_states"`, the final states of both
    directions are classified instead: that of the forward direction is at the last non-padding
    token, that of the backward direction at the first token.
    """

    vocab_size: int | None
    """Vocabulary size, including padding; inferred from the data if None."""
    embedding_size: int
    """Number of features per token embedding."""
    hidden_size: int
    """Size of the hidden state in each direction."""
    num_classes: int | None
    """Number of classes; inferred from the data if None."""
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    """Type of the recurrent layers."""
    bidirectional: bool = True
    """Read the text in both directions."""
    num_layers: int = 1
    """Number of stacked recurrent layers."""
    dropout: float = 0.0
    """Dropout rate between recurrent layers."""
    pooling: Literal["last_step", "final_states"] = "last_step"
    """Features to classify: `last_step` (outputs at the last non-padding step) or
    `final_states` (final states of all directions)."""

    tensor_axes: ClassVar[dict[str, int]] = {"embedding.weight": 0}

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps texts int32[B, T] with `lengths` int32[B] to logits [B, C].

        Raises:
            UserError: if shapes do not match, or the tokens are not integers.
        """
        check_shape("tokens", tokens, "B T")
        check_choice("cell", self.cell, CELLS)
        check_choice("pooling", self.pooling, ("last_step", "final_states"))
        embedding = Embedding(
            required_size("vocab_size", self.vocab_size),
            required_size("embedding_size", self.embedding_size),
            padding_index=0,
            name="embedding",
        )
        rnn = CELLS[self.cell](
            required_size("hidden_size", self.hidden_size),
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            name="rnn",
        )
        outputs, final_state = rnn(embedding(tokens), lengths=lengths, train=train)
        if self.pooling == "final_states":
            directions = 2 if self.bidirectional else 1
            features = jnp.concatenate(hidden(final_state)[-directions:], axis=-1)
        elif lengths is None:
            features = outputs[:, -1]  # [B, H], or [B, 2 H] if bidirectional
        else:
            last = jnp.maximum(lengths - 1, 0)
            features = jnp.take_along_axis(outputs, last[:, None, None], axis=1)[:, 0]
        return Linear(required_size("num_classes", self.num_classes), name="fc")(features)
