"""A recurrent cell run over time.

Legend: B batch, T time, I input size, H hidden size, G gates of a cell.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated
from flaxdl.ops.products import product_over_rows
from flaxdl.ops.reductions import sum_by_channel

State = Any
"""State of a cell: h [B, H], in LSTM the pair of h and c, [B, H] each."""

Cell = Callable[[jax.Array, jax.Array, State], State]
"""The next state from the products of input and hidden state, both [B, G H], and the state."""

Pair = tuple[jax.Array, jax.Array]


def recur(
    inputs: jax.Array,  # [T, B, I]
    weights: Pair,  # [G H, I] and [G H, H]
    biases: Pair,  # [G H] twice
    state: State,
    is_real: jax.Array | None,  # bool[T, B, 1]
    *,
    cell: Cell,
    reverse: bool,
) -> tuple[State, jax.Array]:
    """Runs a cell from the first step to the last, or from the last to the first.

    On padding the state stays as it is. In 16 bits the products take 16-bit factors, but the state
    and the gates are float32, since what is rounded at one step is carried to all others.

    Args:
        inputs: [T, B, I].
        weights: W_ih [G H, I] and W_hh [G H, H], in the dtype of the inputs.
        biases: b_ih and b_hh, [G H] each, in float32 at least.
        state: before the first step, in float32 at least.
        is_real: bool[T, B, 1], false where a step is padding; None where none is.
        cell: a function of this module's `Cell` type, from `ops/cells.py`.
        reverse: whether to begin at the last step.

    Returns:
        The state after the last step, and the hidden states after each, [T, B, H], in the dtype
        of the inputs.
    """

    def step(state: State, at_step: Any) -> tuple[State, jax.Array]:
        x, real = at_step
        from_input = _multiply(x, weights[0].T) + biases[0]
        from_hidden = _multiply(hidden(state), weights[1].T) + biases[1]
        state = _advance(cell, from_input, from_hidden, state, real)
        return state, hidden(state).astype(inputs.dtype)

    return jax.lax.scan(step, state, (inputs, is_real), reverse=reverse)


def _multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The product in the precision of the matrix, added up in float32 at least."""
    wide = jnp.promote_types(matrix.dtype, jnp.float32)
    return jnp.matmul(x.astype(matrix.dtype), matrix, preferred_element_type=wide)


def hidden(state: State) -> jax.Array:
    """Returns the part of a state that a cell puts out, and that its next step multiplies."""
    return jax.tree.leaves(state)[0]


def _advance(
    cell: Cell, from_input: jax.Array, from_hidden: jax.Array, state: State, real: jax.Array | None
) -> State:
    new = cell(from_input, from_hidden, state)
    if real is None:
        return new
    return jax.tree.map(lambda new, old: jnp.where(real, new, old), new, state)


# One product of the inputs serves all steps: only the hidden state has to wait for the step before.
# What `jax.grad` makes of a scan adds up the gradient of the recurrent weights step by step, which
# reads and writes all of it at every step. Here the loop backward leaves that for a single product
# after it.

# Steps in each turn of a loop: on a CPU a turn costs as much as the gates of a step, and on any
# other device it is not free.
_UNROLL = 4


def _scan(advance: Callable, arrays: tuple[Any, ...], reverse: bool) -> tuple[State, Any]:
    inputs, weights, biases, state, is_real = arrays
    transposed = weights[1].T

    def step(state: State, at_step: Any) -> tuple[State, Any]:
        from_input, real = at_step
        # Here, since for all steps at once this is a pass over [T, B, G H].
        from_input += biases[0]
        from_hidden = _multiply(hidden(state), transposed) + biases[1]
        return advance(from_input, from_hidden, state, real)

    xs = _multiply(inputs, weights[0].T), is_real
    return jax.lax.scan(step, state, xs, reverse=reverse, unroll=_UNROLL)


def _fast(*arrays: Any, cell: Cell, reverse: bool) -> tuple[State, jax.Array]:
    def advance(*given: Any) -> tuple[State, jax.Array]:
        new = _advance(cell, *given)
        return new, hidden(new).astype(arrays[0].dtype)

    return _scan(advance, arrays, reverse)


def _forward(*arrays: Any, cell: Cell, reverse: bool) -> tuple[tuple[State, jax.Array], Any]:
    inputs, weights, biases, *_ = arrays

    def advance(from_input: jax.Array, from_hidden: jax.Array, state: State, real: Any) -> Any:
        new, pull_back = jax.vjp(partial(_advance, cell, real=real), from_input, from_hidden, state)
        return new, _cast((hidden(new), hidden(state), pull_back), biases[0].dtype, inputs.dtype)

    final, (outputs, hiddens, pulls_back) = _scan(advance, arrays, reverse)
    return (final, outputs), (inputs, hiddens, pulls_back, weights, biases)


def _backward(saved: Any, gradients: Any, *, cell: Cell, reverse: bool) -> tuple[Any, ...]:
    inputs, hiddens, pulls_back, weights, biases = saved
    d_final, d_outputs = gradients
    dtype, wide = inputs.dtype, biases[0].dtype

    def step(d_state: State, at_step: Any) -> tuple[State, Any]:
        pull_back, d_output = at_step
        d_input, d_product, d_state = _cast(pull_back, dtype, wide)(_plus(d_state, d_output))
        # Where a cell only adds both up they are one, and are saved once.
        d_sums = d_product if d_input is d_product else (d_input, d_product)
        d_state = _plus(d_state, _multiply(d_product, weights[1]))
        return d_state, _cast(d_sums, wide, dtype)

    d_state, d_sums = jax.lax.scan(
        step, d_final, (pulls_back, d_outputs), reverse=not reverse, unroll=_UNROLL
    )
    d_both = d_sums if isinstance(d_sums, tuple) else (d_sums, d_sums)  # [T, B, G H] each
    d_weights = tuple(map(product_over_rows, d_both, (inputs, hiddens)))
    d_biases = tuple(sum_by_channel(d.astype(wide)) for d in d_both)
    return d_both[0] @ weights[0], d_weights, d_biases, d_state, None


def _cast(tree: Any, old: Any, new: Any) -> Any:
    """The tree with arrays of one dtype as arrays of another."""
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)


def _plus(state: State, more: jax.Array) -> State:
    """The state with something added to its hidden part."""
    first, *rest = jax.tree.leaves(state)
    return jax.tree.unflatten(jax.tree.structure(state), [first + more, *rest])


recur = accelerated(recur, fast=_fast, forward=_forward, backward=_backward)
