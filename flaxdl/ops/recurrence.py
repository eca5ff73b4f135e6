"""Recurrence: a cell applied to one time step after another.

Legend: B batch, T time, I input size, H hidden size, G number of gates per cell.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops import thresholds
from flaxdl.ops.dispatch import accelerated
from flaxdl.ops.products import product_over_rows
from flaxdl.ops.reductions import sum_by_channel

State = Any
"""State of a cell: h [B, H], or for LSTM the pair of h and c, [B, H] each."""

Cell = Callable[[jax.Array, jax.Array, State], State]
"""Callable that maps W_ih x + b_ih [B, G H], W_hh h + b_hh [B, G H] and a state to the next one."""

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
    """Applies a cell from the first step to the last, or from the last to the first.

    Padding does not change the state. With 16-bit inputs, the matrix products have 16-bit operands,
    but state and gates are float32, since rounding errors accumulate over the steps.

    Args:
        inputs: [T, B, I].
        weights: W_ih [G H, I] and W_hh [G H, H], in the dtype of the inputs.
        biases: b_ih and b_hh, [G H] each, in float32 or higher precision.
        state: initial state, in float32 or higher precision.
        is_real: bool[T, B, 1], False for padding; None if there is no padding.
        cell: callable of type `Cell`; `flaxdl.ops.cells` contains several.
        reverse: whether to run from the last step to the first.

    Returns:
        The final state, and the hidden state after each step, [T, B, H], in the dtype of the
        inputs.
    """

    def step(state: State, at_step: Any) -> tuple[State, jax.Array]:
        x, real = at_step
        from_input = _multiply(x, weights[0].T) + biases[0]
        from_hidden = _multiply(hidden(state), weights[1].T) + biases[1]
        state = _advance(cell, from_input, from_hidden, state, real)
        return state, hidden(state).astype(inputs.dtype)

    return jax.lax.scan(step, state, (inputs, is_real), reverse=reverse)


def _multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Multiplies in the dtype of the matrix; the result has float32 or higher precision."""
    wide = jnp.promote_types(matrix.dtype, jnp.float32)
    return jnp.matmul(x.astype(matrix.dtype), matrix, preferred_element_type=wide)


def hidden(state: State) -> jax.Array:
    """Extracts the hidden state h (the output of the cell) from a state."""
    return jax.tree.leaves(state)[0]


def _advance(
    cell: Cell, from_input: jax.Array, from_hidden: jax.Array, state: State, real: jax.Array | None
) -> State:
    new = cell(from_input, from_hidden, state)
    if real is None:
        return new
    return jax.tree.map(lambda new, old: jnp.where(real, new, old), new, state)


# The products with the inputs do not depend on the state, so those of all steps are computed as
# one. When `jax.grad` differentiates a scan, it accumulates the gradient of the recurrent weights
# step by step, and reads and writes all of it at each step. Here it is a single product after the
# backward loop.


def _scan(advance: Callable, arrays: tuple[Any, ...], reverse: bool) -> tuple[State, Any]:
    inputs, weights, biases, state, is_real = arrays
    transposed = weights[1].T

    def step(state: State, at_step: Any) -> tuple[State, Any]:
        from_input, real = at_step
        # Added here, since adding it for all steps together would be a pass over [T, B, G H].
        from_input += biases[0]
        from_hidden = _multiply(hidden(state), transposed) + biases[1]
        return advance(from_input, from_hidden, state, real)

    xs = _multiply(inputs, weights[0].T), is_real
    return jax.lax.scan(step, state, xs, reverse=reverse, unroll=thresholds.UNROLLED_STEPS)


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
        # If the cell only adds both, they are the same array, which is stored once.
        d_sums = d_product if d_input is d_product else (d_input, d_product)
        d_state = _plus(d_state, _multiply(d_product, weights[1]))
        return d_state, _cast(d_sums, wide, dtype)

    d_state, d_sums = jax.lax.scan(
        step,
        d_final,
        (pulls_back, d_outputs),
        reverse=not reverse,
        unroll=thresholds.UNROLLED_STEPS,
    )
    d_both = d_sums if isinstance(d_sums, tuple) else (d_sums, d_sums)  # [T, B, G H] each
    d_weights = tuple(map(product_over_rows, d_both, (inputs, hiddens)))
    d_biases = tuple(sum_by_channel(d.astype(wide)) for d in d_both)
    return d_both[0] @ weights[0], d_weights, d_biases, d_state, None


def _cast(tree: Any, old: Any, new: Any) -> Any:
    """Casts arrays of dtype `old` in a tree to dtype `new`."""
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)


def _plus(state: State, more: jax.Array) -> State:
    """Returns the state with `more` added to its hidden state h."""
    first, *rest = jax.tree.leaves(state)
    return jax.tree.unflatten(jax.tree.structure(state), [first + more, *rest])


recur = accelerated(recur, fast=_fast, forward=_forward, backward=_backward)
