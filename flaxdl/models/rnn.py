"""Recurrent classifiers: of sequences of vectors, and of text.

Legend: B batch, T time, I input size, E embedding size, H hidden size, C classes.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_shape
from flaxdl.layers import GRU, LSTM, RNN, Embedding, Linear
from flaxdl.models.sizes import known_size
from flaxdl.ops.recurrence import hidden

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}


class SimpleRNN(nn.Module):
    """The document's classifier of sequences: a recurrent layer, its last output, a linear map.

    An image is such a sequence, row by row.
    """

    hidden_size: int
    """Size of the hidden state."""
    num_classes: int | None
    """Size of the logits; None takes it from the data of a run."""
    cell: Literal["rnn", "lstm", "gru"] = "rnn"
    """Kind of the recurrent layer."""
    num_layers: int = 1
    """Recurrent layers on top of each other."""
    dropout: float = 0.0
    """Share of what each recurrent layer hands to the next that is zeroed in training."""

    @nn.compact
    def __call__(
        self, inputs: jax.Array, *, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps sequences [B, T, I], of which int32[B] steps are real, to logits [B, C].

        Raises:
            UserError: if a shape does not fit.
        """
        check_choice("cell", self.cell, CELLS)
        rnn = CELLS[self.cell](
            known_size("hidden_size", self.hidden_size),
            num_layers=self.num_layers,
            dropout=self.dropout,
            name="rnn",
        )
        _, final_state = rnn(inputs, lengths=lengths, train=train)
        # The final state of the last layer is its output at the last real step.
        return Linear(known_size("num_classes", self.num_classes), name="fc")(
            hidden(final_state)[-1]
        )


class TextRNN(nn.Module):
    """The document's classifier of texts: embedding, recurrent layer in both directions, and map.

    Token 0 is padding; its vector is zero and stays zero in training.

    The document classifies from the outputs of the last time step; with lengths that is the last
    real token, and without them it may be padding. There the backward direction has read no other
    token. `pooling="final_states"` reads what each direction knows at its end: the forward one at
    the last real token, the backward one at the first.
    """

    vocab_size: int | None
    """Number of tokens, padding included; None takes it from the data of a run."""
    embedding_size: int
    """Size of a token's vector."""
    hidden_size: int
    """Size of the hidden state of one direction."""
    num_classes: int | None
    """Size of the logits; None takes it from the data of a run."""
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    """Kind of the recurrent layer."""
    bidirectional: bool = True
    """Whether the text is read backward as well."""
    num_layers: int = 1
    """Recurrent layers on top of each other."""
    dropout: float = 0.0
    """Share of what each recurrent layer hands to the next that is zeroed in training."""
    pooling: Literal["last_step", "final_states"] = "last_step"
    """What is classified: the last real time step, as in the document, or each direction's end."""

    tensor_axes: ClassVar[dict[str, int]] = {"embedding.weight": 0}

    @nn.compact
    def __call__(
        self, tokens: jax.Array, *, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps texts int32[B, T], of which int32[B] tokens are real, to logits [B, C].

        Raises:
            UserError: if a shape does not fit, or the tokens are not integers.
        """
        check_shape("tokens", tokens, "B T")
        check_choice("cell", self.cell, CELLS)
        check_choice("pooling", self.pooling, ("last_step", "final_states"))
        embedding = Embedding(
            known_size("vocab_size", self.vocab_size),
            known_size("embedding_size", self.embedding_size),
            padding_index=0,
            name="embedding",
        )
        rnn = CELLS[self.cell](
            known_size("hidden_size", self.hidden_size),
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
            features = outputs[:, -1]  # [B, H], or [B, 2 H] in both directions
        else:
            last = jnp.maximum(lengths - 1, 0)
            features = jnp.take_along_axis(outputs, last[:, None, None], axis=1)[:, 0]
        return Linear(known_size("num_classes", self.num_classes), name="fc")(features)
