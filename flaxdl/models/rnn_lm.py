"""Recurrent language model: predicts the next token from a state that summarizes all earlier ones.

Mikolov et al., "Recurrent neural network based language model", 2010; with LSTM layers, Zaremba,
Sutskever and Vinyals, "Recurrent Neural Network Regularization", 2014. Parameters have the names of
the model in PyTorch's example `word_language_model`: `encoder` (the embedding), `rnn` and `decoder`
(the output layer).

Legend: B batch, T tokens, E embedding size, H hidden size, N layers, V vocabulary.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_shape
from flaxdl.errors import UserError
from flaxdl.layers import Dropout, Embedding, Linear
from flaxdl.layers.initializers import constant, uniform
from flaxdl.models.rnn import CELLS
from flaxdl.models.sizes import required_size
from flaxdl.ops.bias import add_bias
from flaxdl.ops.recurrence import State


class TiedDecoder(nn.Module):
    """Output layer that shares its weights with the embedding: `y = x Eᵀ + b`."""

    @nn.compact
    def __call__(self, inputs: jax.Array, table: jax.Array) -> jax.Array:
        """Maps [B, T, E] and the embedding table [V, E] to logits [B, T, V]."""
        bias = self.param("bias", constant(0.0), table.shape[:1], jnp.float32)
        return add_bias(inputs @ table.T, bias)


class RNNLM(nn.Module):
    """Autoregressive language model: recurrent layers predict the next token.

    Use `flaxdl.models.generate` to generate text. To read a long text in parts, pass the state
    after each part to the next call of `read`; the logits equal those of reading it as a whole:

    >>> model = flaxdl.models.RNNLM(vocab_size=10, embedding_size=4, hidden_size=8)
    >>> tokens = jnp.array([[5, 3, 1, 4, 1, 5]])  # [B, T]
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> first, state = model.apply(variables, tokens[:, :4], method="read")
    >>> second, state = model.apply(variables, tokens[:, 4:], state, method="read")
    >>> whole = model.apply(variables, tokens)
    >>> bool(jnp.allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6))
    True
    """

    vocab_size: int | None
    """Vocabulary size; inferred from the data if None."""
    embedding_size: int
    """Number of features per token embedding."""
    hidden_size: int
    """Size of the hidden state."""
    cell: Literal["rnn", "lstm", "gru"] = "lstm"
    """Type of the recurrent layers."""
    num_layers: int = 1
    """Number of stacked recurrent layers."""
    dropout: float = 0.0
    """Dropout rate for embeddings, between recurrent layers, and for their outputs."""
    tie_weights: bool = False
    """Use the embedding table as weights of the output layer (Press and Wolf, "Using the Output
    Embedding to Improve Language Models", 2016); requires equal embedding and hidden sizes."""

    tensor_axes: ClassVar[dict[str, int]] = {"encoder.weight": 0}

    def setup(self) -> None:
        """Creates the embedding, the recurrent layers and the output layer."""
        check_choice("cell", self.cell, CELLS)
        vocab_size = required_size("vocab_size", self.vocab_size)
        embedding_size = required_size("embedding_size", self.embedding_size)
        hidden_size = required_size("hidden_size", self.hidden_size)
        if self.tie_weights and embedding_size != hidden_size:
            raise UserError(
                f"tie_weights requires embedding_size and hidden_size to be equal, "
                f"got {embedding_size} and {hidden_size}"
            )
        init = uniform(0.1)  # as in PyTorch's example
        self.encoder = Embedding(vocab_size, embedding_size, embedding_init=init)
        self.rnn = CELLS[self.cell](hidden_size, num_layers=self.num_layers, dropout=self.dropout)
        self.decoder = (
            TiedDecoder()
            if self.tie_weights
            else Linear(vocab_size, kernel_init=init, bias_init=constant(0.0))
        )
        self.drop = Dropout(self.dropout)

    def __call__(
        self, tokens: jax.Array, *, lengths: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Maps tokens int32[B, T] to logits [B, T, V] of the next tokens.

        Padding after a text, as specified by `lengths` int32[B], does not affect its logits.

        Raises:
            UserError: if shapes do not match, or the tokens are not integers.
        """
        return self.read(tokens, lengths=lengths, train=train)[0]

    def read(
        self,
        tokens: jax.Array,
        state: State | None = None,
        *,
        lengths: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        """Returns the logits [B, T, V] of the next tokens, and the state after the last token.

        Args:
            tokens: int32[B, T].
            state: state after earlier tokens, as returned by this method; by default, there are no
                earlier tokens.
            lengths: int32[B], number of non-padding tokens in each text; by default, T. The
                returned state is the one after the last of them.
            train: whether to apply dropout, with random numbers from the RNG stream "dropout".

        Raises:
            UserError: if shapes do not match, or the tokens are not integers.
        """
        check_shape("tokens", tokens, "B T")
        x = self.drop(self.encoder(tokens), train)  # [B, T, E]
        x, state = self.rnn(x, lengths=lengths, initial_state=state, train=train)  # [B, T, H]
        x = self.drop(x, train)
        if isinstance(self.decoder, TiedDecoder):
            return self.decoder(x, self.encoder.embedding), state
        return self.decoder(x), state

    @nn.nowrap
    def initial_state(self, batch_size: int, dtype: jnp.dtype = jnp.float32) -> State:
        """Returns the state before the first token: zeros [N, B, H], or a pair of them for LSTM."""
        check_choice("cell", self.cell, CELLS)
        zeros = jnp.zeros((self.num_layers, batch_size, self.hidden_size), dtype)
        return CELLS[self.cell](self.hidden_size, parent=None).state_of(zeros)
