"""Recurrent encoder-decoder for sequence-to-sequence tasks, with or without attention.

Without attention, the final state of the encoder, a vector of fixed size, is the decoder's
only information about the inputs:

- Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
  Translation", 2014;
- Sutskever, Vinyals and Le, "Sequence to Sequence Learning with Neural Networks", 2014.

Attention lets each step of the decoder read all outputs of the encoder (the memory). The context is
c = Σ_t α_t m_t, where α = softmax_t(score(q, m_t)):

- additive: score(q, m) = vᵀ tanh(W_q q + b + W_m m). The query is the decoder's state before the
  step, and the context is part of its input (Bahdanau, Cho and Bengio, "Neural Machine Translation
  by Jointly Learning to Align and Translate", 2015);
- dot: score(q, m) = qᵀ m. The query is the decoder's output, and the context only affects the
  logits (Luong, Pham and Manning, "Effective Approaches to Attention-based Neural Machine
  Translation", 2015).

Legend: B batch, T tokens, S target tokens, E embedding size, H hidden size, L number of layers, V
vocabulary.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_shape
from flaxdl.errors import UserError
from flaxdl.layers import Dropout, Embedding, Linear, token_mask
from flaxdl.models.rnn import CELLS
from flaxdl.models.sizes import required_size
from flaxdl.ops.recurrence import State, hidden

Memory = tuple[jax.Array, State]
"""The encoder's outputs [B, T, H], and the initial state of the decoder, [B, L, H], or a pair
(h, c) of these for LSTM."""


class AdditiveAttention(nn.Module):
    """Scores of additive attention (Bahdanau et al., 2015)."""

    hidden_size: int
    """Number of features of queries and memory."""

    def setup(self) -> None:
        """Creates the linear layers."""
        self.query = Linear(self.hidden_size)
        self.key = Linear(self.hidden_size, use_bias=False)
        self.score = Linear(1, use_bias=False)

    def keys(self, memory: jax.Array) -> jax.Array:
        """Maps the memory [B, T, H] to keys [B, T, H], which are the same for all queries."""
        return self.key(memory)

    def __call__(self, query: jax.Array, keys: jax.Array) -> jax.Array:
        """Maps queries [B, S, H] and keys [B, T, H] to scores [B, S, T]."""
        sums = self.query(query)[:, :, None] + keys[:, None]  # [B, S, T, H]
        return self.score(jnp.tanh(sums))[..., 0]


class DotAttention(nn.Module):
    """Scores of dot-product attention (Luong et al., 2015), without parameters."""

    def __call__(self, query: jax.Array, keys: jax.Array) -> jax.Array:
        """Maps queries [B, S, H] and keys [B, T, H] to scores [B, S, T]."""
        wide = jnp.promote_types(query.dtype, jnp.float32)
        return jnp.einsum("bsh,bth->bst", query, keys, preferred_element_type=wide)


def read(
    scores: jax.Array, memory: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the contexts [B, S, H] and the attention weights [B, S, T].

    Args:
        scores: [B, S, T].
        memory: [B, T, H].
        mask: bool[B, 1, T], False for padding, whose weight is 0; None if there is no padding.
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if mask is None:
        weights = jax.nn.softmax(scores)
    else:
        weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min))
        weights = jnp.where(mask, weights, 0)
    weights = weights.astype(memory.dtype)
    return weights @ memory, weights


class Seq2SeqRNN(nn.Module):
    """Recurrent encoder-decoder for sequence-to-sequence tasks, with optional attention.

    The final states of the encoder are the initial states of the decoder, layer by layer. With
    attention, the logits are computed from tanh(W [output; context]). It is called like
    `Seq2SeqTransformer`; use `flaxdl.models.translate` to generate outputs.

    >>> model = flaxdl.models.Seq2SeqRNN(vocab_size=10, embedding_size=4, hidden_size=8)
    >>> inputs, targets = jnp.array([[5, 3, 4]]), jnp.array([[2, 7]])  # [B, T], [B, S]
    >>> variables = model.init(jax.random.key(0), inputs, targets=targets)
    >>> model.apply(variables, inputs, targets=targets).shape
    (1, 2, 10)
    """

    vocab_size: int | None
    """Vocabulary size; inferred from the data if None."""
    embedding_size: int
    """Number of features per token embedding."""
    hidden_size: int
    """Size of the decoder's hidden state and of the encoder's outputs. A bidirectional encoder has
    half of it in each direction."""
    cell: Literal["rnn", "lstm", "gru"] = "gru"
    """Type of the recurrent layers."""
    num_layers: int = 1
    """Number of recurrent layers in the encoder, and in the decoder."""
    bidirectional: bool = True
    """Read the inputs in both directions."""
    attention: Literal["additive", "dot"] | None = "additive"
    """Score function of the attention: `additive` (Bahdanau) or `dot` (Luong); None for no
    attention."""
    dropout: float = 0.0
    """Dropout rate for embeddings and between recurrent layers."""
    target_vocab_size: int | None = None
    """Vocabulary size of the targets; by default, `vocab_size`."""

    tensor_axes: ClassVar[dict[str, int]] = {"*embedding.weight": 0}

    def setup(self) -> None:
        """Creates embeddings, encoder, attention, decoder and the output layer."""
        check_choice("cell", self.cell, CELLS)
        vocab_size = required_size("vocab_size", self.vocab_size)
        embedding_size = required_size("embedding_size", self.embedding_size)
        size = required_size("hidden_size", self.hidden_size)
        if self.bidirectional and size % 2:
            raise UserError(f"hidden_size must be even for a bidirectional encoder, got {size}")
        target_vocab_size = vocab_size
        if self.target_vocab_size is not None:
            target_vocab_size = required_size("target_vocab_size", self.target_vocab_size)
        Layers = CELLS[self.cell]
        options = {"num_layers": self.num_layers, "dropout": self.dropout}

        self.embedding_dropout = Dropout(self.dropout)
        self.embedding = Embedding(vocab_size, embedding_size)
        self.encoder = Layers(
            size // 2 if self.bidirectional else size, bidirectional=self.bidirectional, **options
        )
        self.target_embedding = Embedding(target_vocab_size, embedding_size)
        self.decoder = Layers(size, **options)
        if self.attention is not None:
            check_choice("attention", self.attention, ("additive", "dot"))
            is_dot = self.attention == "dot"
            attention = DotAttention if is_dot else partial(AdditiveAttention, size)
            self.scores = attention(name="attention")
            self.combine = Linear(size)
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
        target predict the next one. `lengths`, int32[B], are the numbers of non-padding inputs; by
        default, there is no padding. Padding after a target does not affect its logits, so
        `target_lengths` are not needed.

        Raises:
            UserError: if shapes do not match, or tokens are not integers.
        """
        memory, memory_mask = self.encode(inputs, lengths, train)
        return self.decode(targets, memory, memory_mask=memory_mask, train=train)

    def encode(
        self, inputs: jax.Array, lengths: jax.Array | None, train: bool = False
    ) -> tuple[Memory, jax.Array | None]:
        """Maps inputs int32[B, T] to the memory and its padding mask, bool[B, 1, 1, T] or None."""
        check_shape("inputs", inputs, "B T")
        mask = token_mask(inputs, lengths, None)
        x = self.embedding_dropout(self.embedding(inputs), train)
        outputs, state = self.encoder(x, lengths=lengths, train=train)

        def joined(state: jax.Array) -> jax.Array:  # [L, B, H], or [2 L, B, H / 2]
            by_layer = state.reshape(self.num_layers, -1, *state.shape[1:])
            return by_layer.transpose(2, 0, 1, 3).reshape(inputs.shape[0], self.num_layers, -1)

        return (outputs, jax.tree.map(joined, state)), mask

    def decode(
        self,
        targets: jax.Array,
        memory: Memory,
        *,
        memory_mask: jax.Array | None,
        train: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps targets int32[B, S] and the memory to logits [B, S, V].

        For incremental decoding, pass the `position` of the first target. The mutable collection
        "cache" contains the `state` of the decoder after earlier targets, initially that in the
        memory, and is updated.
        """
        outputs, state = memory
        check_shape("targets", targets, "B S", B=outputs.shape[0])
        if position is not None:
            state = self.get_variable("cache", "state")
        state = _swapped(state)  # [L, B, H]
        x = self.embedding_dropout(self.target_embedding(targets), train)  # [B, S, E]
        mask = None if memory_mask is None else memory_mask[:, 0]  # [B, 1, T]
        if self.attention == "additive":
            x, state = self._attend_before_each_step(x, state, outputs, mask, train)
        else:
            x, state = self.decoder(x, initial_state=state, train=train)  # [B, S, H]
        if self.attention == "dot":
            context, weights = read(self.scores(x, outputs), outputs, mask)
            self._store(weights)
            x = jnp.concatenate([x, context], axis=-1)  # [B, S, 2 H]
        if position is not None:
            self.put_variable("cache", "state", _swapped(state))
        if self.attention is not None:
            x = jnp.tanh(self.combine(x))  # [B, S, H]
        return self.fc(x)

    def _attend_before_each_step(
        self, x: jax.Array, state: State, outputs: jax.Array, mask: jax.Array | None, train: bool
    ) -> tuple[jax.Array, State]:
        """Maps embeddings [B, S, E] to outputs and contexts [B, S, 2 H], and the final state."""
        keys = self.scores.keys(outputs)

        def step(model: "Seq2SeqRNN", state: State, x: jax.Array) -> tuple[State, Any]:
            query = hidden(state)[-1][:, None]  # [B, 1, H]
            context, weights = read(model.scores(query, keys), outputs, mask)
            x = jnp.concatenate([x[:, None], context], axis=-1)  # [B, 1, E + H]
            x, state = model.decoder(x, initial_state=state, train=train)
            return state, (jnp.concatenate([x, context], axis=-1)[:, 0], weights[:, 0])

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            in_axes=1,
            out_axes=1,
        )
        state, (x, weights) = scan(self, state, x)
        self._store(weights)
        return x, state

    def _store(self, weights: jax.Array) -> None:
        """Stores attention weights [B, S, T] as [B, 1, S, T], as attention layers do on request."""
        self.scores.sow("intermediates", "attention_weights", weights[:, None])


def _swapped(state: State) -> State:
    """Swaps the axes of layers and batch: [L, B, H] in recurrent layers, otherwise [B, L, H]."""
    return jax.tree.map(lambda part: part.swapaxes(0, 1), state)
