"""Recurrent layers: what `torch.nn.RNN`, `LSTM` and `GRU` compute with `batch_first=True`.

Legend: B batch, T time, I input size, H hidden size, N layers times directions; G gates of a cell:
1 in RNN, 4 in LSTM, 3 in GRU.
"""

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_choice, check_integers, check_shape
from flaxdl.errors import UserError
from flaxdl.layers.dropout import Dropout
from flaxdl.layers.initializers import uniform
from flaxdl.ops.cells import gru_cell, lstm_cell, relu_cell, tanh_cell
from flaxdl.ops.recurrence import Cell, State, recur


class Recurrent(nn.Module):
    """What the three kinds have in common: layers, directions, lengths. They differ in their cell.

    Parameters, with PyTorch's names and layouts, for layer k: `weight_ih_lk` [G H, I],
    `weight_hh_lk` [G H, H], `bias_ih_lk` and `bias_hh_lk` [G H], and the same with `_reverse` for
    the backward direction. A layer above the first reads the outputs of both directions below it.
    """

    hidden_size: int
    """Size of the hidden state of one direction."""
    num_layers: int = 1
    """Layers on top of each other, each reading the outputs of the one below."""
    bidirectional: bool = False
    """Whether a second pass reads each sequence from its end; the outputs are concatenated."""
    dropout: float = 0.0
    """Share of the outputs of each layer but the last that is zeroed in training."""

    num_gates: ClassVar[int]
    """Vectors of the hidden size that a step computes from its input and the hidden state."""

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the recurrence, which gives the state after a step."""
        raise NotImplementedError

    @nn.nowrap
    def state_of(self, hidden: jax.Array) -> State:
        """Returns a state all of whose parts are equal to the hidden state given."""
        return hidden

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        *,
        lengths: jax.Array | None = None,
        initial_state: State | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, State]:
        """Reads the sequences and returns the outputs of every step and the final states.

        With `lengths`, what lies beyond a sequence's length has no effect: outputs there are zero,
        the final state is that of the last real step, and the backward direction starts at it.

        Args:
            inputs: [B, T, I].
            lengths: int32[B], how many steps of each sequence are real; all of them if None.
            initial_state: [N, B, H], or a pair of these for LSTM, ordered as the final state; zeros
                if None.
            train: whether dropout is on; it draws from the stream "dropout".

        Returns:
            The outputs of the last layer [B, T, H], with both directions [B, T, 2 H], and the final
            states [N, B, H] (LSTM: the pair of hidden and cell), layer by layer, each forward then
            backward.

        Raises:
            UserError: if a shape does not fit or the lengths are not integers.
        """
        check_shape("inputs", inputs, "B T I")
        if self.has_variable("params", "weight_ih_l0"):
            input_size = self.get_variable("params", "weight_ih_l0").shape[1]
            check_shape("inputs", inputs, "B T I", I=input_size)
        batch_size, num_steps = inputs.shape[:2]
        is_real = None  # [T, B, 1]
        if lengths is not None:
            check_shape("lengths", lengths, "B", B=batch_size)
            check_integers("lengths", lengths)
            is_real = (jnp.arange(num_steps)[:, None] < lengths)[:, :, None]
        directions = ("", "_reverse") if self.bidirectional else ("",)
        if initial_state is not None:
            self._check_state(initial_state, batch_size, self.num_layers * len(directions))

        x = inputs.swapaxes(0, 1)  # [T, B, I]: the scan runs over the first axis
        dropout = Dropout(self.dropout, name="dropout")
        final_states = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = dropout(x, train)
            outputs = []
            for direction in directions:
                initial = jax.tree.map(lambda s: s[len(final_states)], initial_state)
                output, state = self._scan(x, initial, is_real, f"l{layer}{direction}")
                outputs.append(output)
                final_states.append(state)
            x = jnp.concatenate(outputs, axis=-1)  # [T, B, H] or [T, B, 2 H]
        final_state = jax.tree.map(lambda *states: jnp.stack(states), *final_states)  # [N, B, H]
        return x.swapaxes(0, 1), final_state

    def _scan(
        self, x: jax.Array, state: State | None, is_real: jax.Array | None, suffix: str
    ) -> tuple[jax.Array, State]:
        """Runs one direction of one layer over [T, B, I]; returns [T, B, H] and the final state.

        The backward direction runs from T - 1 down to 0. On padding the state stays as it is, so
        each sequence starts at its own end without being turned around.
        """
        init, width = uniform(1 / math.sqrt(self.hidden_size)), self.num_gates * self.hidden_size
        weight_ih = self.param(f"weight_ih_{suffix}", init, (width, x.shape[-1]), jnp.float32)
        weight_hh = self.param(f"weight_hh_{suffix}", init, (width, self.hidden_size), jnp.float32)
        bias_ih = self.param(f"bias_ih_{suffix}", init, (width,), jnp.float32)
        bias_hh = self.param(f"bias_hh_{suffix}", init, (width,), jnp.float32)

        dtype = jnp.result_type(x, weight_ih)
        wide = jnp.promote_types(dtype, jnp.float32)
        if state is None:
            state = self.state_of(jnp.zeros_like(x, wide, shape=(x.shape[1], self.hidden_size)))
        state, biases = jax.tree.map(lambda a: a.astype(wide), (state, (bias_ih, bias_hh)))
        x, weights = jax.tree.map(lambda a: a.astype(dtype), (x, (weight_ih, weight_hh)))
        reverse = suffix.endswith("_reverse")
        state, outputs = recur(
            x, weights, biases, state, is_real, cell=self.cell(), reverse=reverse
        )
        state = jax.tree.map(lambda s: s.astype(dtype), state)
        return outputs if is_real is None else jnp.where(is_real, outputs, 0), state

    def _check_state(self, state: State, batch_size: int, states: int) -> None:
        expected = jax.tree.structure(self.state_of(jnp.zeros(())))
        if jax.tree.structure(state) != expected:
            raise UserError(
                f"initial_state must have the structure {expected}, got {jax.tree.structure(state)}"
            )
        for array in jax.tree.leaves(state):
            check_shape("initial_state", array, "N B H", N=states, B=batch_size, H=self.hidden_size)


NONLINEARITIES = {"tanh": tanh_cell, "relu": relu_cell}


class RNN(Recurrent):
    """The plain recurrence h' = tanh(W_ih x + b_ih + W_hh h + b_hh) of Elman (1990)."""

    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """What bounds (tanh) or cuts (relu) the sum."""

    num_gates = 1

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the recurrence of the nonlinearity."""
        check_choice("nonlinearity", self.nonlinearity, NONLINEARITIES)
        return NONLINEARITIES[self.nonlinearity]


class LSTM(Recurrent):
    """Long short-term memory: gates decide what its cell forgets, takes in and shows.

    Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    """

    num_gates = 4

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the recurrence, whose gates lie in the order i, f, g, o."""
        return lstm_cell

    @nn.nowrap
    def state_of(self, hidden: jax.Array) -> State:
        """Returns the pair of hidden state and cell."""
        return hidden, hidden


class GRU(Recurrent):
    """The gated recurrent unit of Cho et al. (2014), in PyTorch's form.

    The reset gate multiplies what comes from the hidden state after its product and bias, so the
    two biases of the new state are not one.
    """

    num_gates = 3

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the recurrence, whose gates lie in the order reset, update, new."""
        return gru_cell
