"""A recurrent cell run over time, with a gradient of its own.

What `jax.grad` makes of a scan adds up the gradient of the recurrent weights step by step, which
reads and writes all of it at every step. Here the loop backward leaves that for a single product
behind it.

In 16 bits the products take 16-bit factors, but the state and the gates are float32, since what is
rounded at one step goes on to all others.

Legend: B batch, T time, I input size, H hidden size, G gates of a cell.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.products import product_over_rows
from flaxdl.ops.reductions import sum_by_channel

State = Any
"""What a cell remembers: hidden [B, H], in LSTM the pair of hidden and cell [B, H]."""

Cell = Callable[[jax.Array, jax.Array, State], State]
"""The next state from the products of input and hidden state, both [B, G H], and the state."""

# Steps in each turn of a loop: on a CPU a turn costs as much as the gates of a step, and on any
# other device it is not free.
_UNROLL = 4


def recur(
    cell: Cell,
    backward: bool,
    inputs: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    biases: tuple[jax.Array, jax.Array],
    state: State,
    is_real: jax.Array | None,
) -> tuple[State, jax.Array]:
    """Runs a cell from the first step to the last, or from the last to the first.

    On padding the state stays as it is.

    Args:
        cell: the recurrence.
        backward: whether to begin at the last step.
        inputs: [T, B, I].
        weights: [G H, I] and [G H, H], what inputs and hidden states are multiplied with, in the
            dtype of the inputs.
        biases: two times [G H], added to these products.
        state: before the first step, in float32 at least, as biases are.
        is_real: bool[T, B, 1], false where a step is padding; None where none is.

    Returns:
        The state behind the last step, and the hidden states behind each, [T, B, H], in the dtype
        of the inputs.
    """
    return _recur(cell, backward, inputs, weights, biases, state, is_real)


def _multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """The product in the precision of the matrix, added up in float32 at least."""
    wide = jnp.promote_types(matrix.dtype, jnp.float32)
    return jnp.matmul(x.astype(matrix.dtype), matrix, preferred_element_type=wide)


def _alone(
    cell: Cell,
    backward: bool,
    inputs: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    biases: tuple[jax.Array, jax.Array],
    state: State,
    is_real: jax.Array | None,
) -> tuple[State, jax.Array]:
    transposed = weights[1].T

    def step(state: State, at_step: Any) -> tuple[State, jax.Array]:
        from_input, real = at_step
        # Here, since for all steps at once this is a pass over [T, B, G H].
        from_input += biases[0]
        from_hidden = _multiply(hidden(state), transposed) + biases[1]
        new = _advance(cell, from_input, from_hidden, state, real)
        return new, hidden(new).astype(inputs.dtype)

    # One product for all steps: only the hidden state has to wait for the step before.
    xs = _multiply(inputs, weights[0].T), is_real
    return jax.lax.scan(step, state, xs, reverse=backward, unroll=_UNROLL)


def _forward(
    cell: Cell,
    backward: bool,
    inputs: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    biases: tuple[jax.Array, jax.Array],
    state: State,
    is_real: jax.Array | None,
) -> tuple[tuple[State, jax.Array], Any]:
    transposed, dtype = weights[1].T, inputs.dtype

    def step(state: State, at_step: Any) -> tuple[State, Any]:
        from_input, real = at_step
        from_input += biases[0]
        from_hidden = _multiply(hidden(state), transposed) + biases[1]
        new, pull_back = jax.vjp(partial(_advance, cell, real=real), from_input, from_hidden, state)
        kept = _in_place_of(biases[0].dtype, dtype, (hidden(new), hidden(state), pull_back))
        return new, kept

    xs = _multiply(inputs, weights[0].T), is_real
    final, (outputs, hiddens, pulls_back) = jax.lax.scan(
        step, state, xs, reverse=backward, unroll=_UNROLL
    )
    return (final, outputs), (inputs, hiddens, pulls_back, weights, biases)


def _backward(cell: Cell, backward: bool, saved: Any, gradients: Any) -> tuple[Any, ...]:
    inputs, hiddens, pulls_back, weights, biases = saved
    of_final, of_outputs = gradients
    dtype, wide = inputs.dtype, biases[0].dtype

    def step(of_state: State, at_step: Any) -> tuple[State, Any]:
        pull_back, of_output = at_step
        of_state = _with_hidden(of_state, of_output)
        of_input, of_product, of_state = _in_place_of(dtype, wide, pull_back)(of_state)
        # Where a cell only adds both up they are one, and are kept once.
        kept = of_product if of_input is of_product else (of_input, of_product)
        of_state = _with_hidden(of_state, _multiply(of_product, weights[1]))
        return of_state, _in_place_of(wide, dtype, kept)

    of_state, kept = jax.lax.scan(
        step, of_final, (pulls_back, of_outputs), reverse=not backward, unroll=_UNROLL
    )
    of_both = kept if isinstance(kept, tuple) else (kept, kept)  # [T, B, G H] each
    of_weights = tuple(
        product_over_rows(of_sums, factors)
        for of_sums, factors in zip(of_both, (inputs, hiddens), strict=True)
    )
    of_biases = tuple(
        sum_by_channel(of_sums.astype(bias.dtype))
        for of_sums, bias in zip(of_both, biases, strict=True)
    )
    of_inputs = of_both[0] @ weights[0]
    return of_inputs, of_weights, of_biases, of_state, None


def _in_place_of(old: Any, new: Any, tree: Any) -> Any:
    """The tree with arrays of one dtype as arrays of another."""
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)


_recur: Any = jax.custom_vjp(_alone, nondiff_argnums=(0, 1))
_recur.defvjp(_forward, _backward)


def _advance(
    cell: Cell,
    from_input: jax.Array,
    from_hidden: jax.Array,
    state: State,
    real: jax.Array | None,
) -> State:
    new = cell(from_input, from_hidden, state)
    if real is None:
        return new
    return jax.tree.map(lambda new, old: jnp.where(real, new, old), new, state)


def hidden(state: State) -> jax.Array:
    """Returns the part of a state that a cell puts out, and that its next step multiplies."""
    return jax.tree.leaves(state)[0]


def _with_hidden(state: State, more: jax.Array) -> State:
    """The state with something added to its hidden part."""
    first, *rest = jax.tree.leaves(state)
    return jax.tree.unflatten(jax.tree.structure(state), [first + more, *rest])
