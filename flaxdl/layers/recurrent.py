"""Recurrent layers equivalent to `torch.nn.RNN`, `LSTM` and `GRU` with `batch_first=True`.

Legend: B batch, T time, I input size, H hidden size, N number of layers times directions, G number
of gates per cell (1 in RNN, 4 in LSTM, 3 in GRU).
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
    """Base class of the recurrent layers; subclasses define the cell.

    Layer k has parameters with PyTorch's names and layouts: `weight_ih_lk` [G H, I], `weight_hh_lk`
    [G H, H], `bias_ih_lk` [G H] and `bias_hh_lk` [G H]. Those of the backward direction have the
    same names with the suffix `_reverse`. Layers after the first read the concatenated outputs of
    both directions of the previous layer.
    """

    hidden_size: int
    """Size of the hidden state in each direction."""
    num_layers: int = 1
    """Number of stacked layers."""
    bidirectional: bool = False
    """Read each sequence in both directions and concatenate the outputs."""
    dropout: float = 0.0
    """Dropout rate for the outputs of each layer except the last."""

    num_gates: ClassVar[int]
    """Number of gates: vectors of size H that a step computes from its input and hidden state."""

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the cell, a callable that computes the next state."""
        raise NotImplementedError

    @nn.nowrap
    def state_of(self, hidden: jax.Array) -> State:
        """Returns a state whose parts are all equal to `hidden`."""
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
        """Returns the outputs of the last layer at every step, and the final states of all layers.

        With `lengths`, padding has no effect. Its outputs are zero, the final state of the forward
        direction is the state after the last non-padding step, and the backward direction starts at
        that step.

        Args:
            inputs: [B, T, I].
            lengths: int32[B], number of non-padding steps in each sequence; by default, T.
            initial_state: [N, B, H], or a pair (h, c) of these for LSTM, in the order of the final
                states; by default, zeros.
            train: whether to apply dropout, with random numbers from the RNG stream "dropout".

        Returns:
            The outputs [B, T, H] or, if bidirectional, [B, T, 2 H]; and the final states [N, B, H],
            or a pair (h, c) of these for LSTM, ordered by layer, with the forward before the
            backward direction.

        Raises:
            UserError: if shapes do not match or the lengths are not integers.
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

        The backward direction runs from T - 1 down to 0. Since padding does not change the state,
        each sequence starts at its own last step without being reversed.
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
    """Elman RNN (1990): `h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`."""

    nonlinearity: Literal["tanh", "relu"] = "tanh"
    """Activation function of the cell."""

    num_gates = 1

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the cell with the selected nonlinearity."""
        check_choice("nonlinearity", self.nonlinearity, NONLINEARITIES)
        return NONLINEARITIES[self.nonlinearity]


class LSTM(Recurrent):
    """Long short-term memory (LSTM) with forget gate.

    Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Gers, Schmidhuber and Cummins,
    "Learning to Forget: Continual Prediction with LSTM", 2000.

    >>> lstm = flaxdl.layers.LSTM(hidden_size=8, bidirectional=True)
    >>> inputs = jnp.zeros((2, 5, 3))  # [B, T, I]
    >>> variables = lstm.init(jax.random.key(0), inputs)
    >>> outputs, (h, c) = lstm.apply(variables, inputs)
    >>> outputs.shape, h.shape
    ((2, 5, 16), (2, 2, 8))
    """

    num_gates = 4

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the cell, with gates in the order i, f, g, o (input, forget, cell, output)."""
        return lstm_cell

    @nn.nowrap
    def state_of(self, hidden: jax.Array) -> State:
        """Returns a pair of hidden state and cell state, both equal to `hidden`."""
        return hidden, hidden


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al., 2014), in PyTorch's variant.

    The reset gate is applied to W_hh h + b_hh, so the two biases of the new gate cannot be merged.
    """

    num_gates = 3

    @nn.nowrap
    def cell(self) -> Cell:
        """Returns the cell, with gates in the order r, z, n (reset, update, new)."""
        return gru_cell
