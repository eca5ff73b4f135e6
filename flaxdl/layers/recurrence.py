"""A recurrent cell run over time, with a gradient of its own.

What `jax.grad` makes of a scan adds up the gradient of the recurrent weights step by step, which
reads and writes all of it at every step. Here the loop backward leaves that for a single product
behind it.

Legend: B batch, T time, H hidden size, G gates of a cell.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.layers.channel_sums import sum_by_channel

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
    from_inputs: jax.Array,
    weight: jax.Array,
    biases: tuple[jax.Array, jax.Array],
    state: State,
    is_real: jax.Array | None,
) -> tuple[State, jax.Array]:
    """Runs a cell from the first step to the last, or from the last to the first.

    On padding the state stays as it is.

    Args:
        cell: the recurrence.
        backward: whether to begin at the last step.
        from_inputs: [T, B, G H], the products of the inputs.
        weight: [G H, H], what the hidden state is multiplied with.
        biases: two times [G H], added to the products of the inputs and of the hidden state.
        state: before the first step.
        is_real: bool[T, B, 1], false where a step is padding; None where none is.

    Returns:
        The state behind the last step, and the hidden states behind each, [T, B, H].
    """
    return _recur(cell, backward, from_inputs, weight, biases, state, is_real)


def _alone(
    cell: Cell,
    backward: bool,
    from_inputs: jax.Array,
    weight: jax.Array,
    biases: tuple[jax.Array, jax.Array],
    state: State,
    is_real: jax.Array | None,
) -> tuple[State, jax.Array]:
    transposed = weight.T

    def step(state: State, at_step: Any) -> tuple[State, jax.Array]:
        from_input, real = at_step
        # Here, since for all steps at once this is a pass over [T, B, G H].
        from_input, from_hidden = from_input + biases[0], hidden(state) @ transposed + biases[1]
        new = _advance(cell, from_input, from_hidden, state, real)
        return new, hidden(new)

    return jax.lax.scan(step, state, (from_inputs, is_real), reverse=backward, unroll=_UNROLL)


def _forward(
    cell: Cell,
    backward: bool,
    from_inputs: jax.Array,
    weight: jax.Array,
    biases: tuple[jax.Array, jax.Array],
    state: State,
    is_real: jax.Array | None,
) -> tuple[tuple[State, jax.Array], Any]:
    transposed = weight.T

    def step(state: State, at_step: Any) -> tuple[State, Any]:
        from_input, real = at_step
        from_input, from_hidden = from_input + biases[0], hidden(state) @ transposed + biases[1]
        new, pull_back = jax.vjp(partial(_advance, cell, real=real), from_input, from_hidden, state)
        return new, (hidden(new), hidden(state), pull_back)

    final, (outputs, hiddens, pulls_back) = jax.lax.scan(
        step, state, (from_inputs, is_real), reverse=backward, unroll=_UNROLL
    )
    return (final, outputs), (hiddens, pulls_back, weight, biases)


def _backward(cell: Cell, backward: bool, saved: Any, gradients: Any) -> tuple[Any, ...]:
    hiddens, pulls_back, weight, biases = saved
    of_final, of_outputs = gradients

    def step(of_state: State, at_step: Any) -> tuple[State, Any]:
        pull_back, of_output = at_step
        of_input, of_product, of_state = pull_back(_with_hidden(of_state, of_output))
        # Where a cell only adds both up they are one, and are kept once.
        kept = of_product if of_input is of_product else (of_input, of_product)
        return _with_hidden(of_state, of_product @ weight), kept

    of_state, kept = jax.lax.scan(
        step, of_final, (pulls_back, of_outputs), reverse=not backward, unroll=_UNROLL
    )
    of_inputs, of_products = kept if isinstance(kept, tuple) else (kept, kept)
    rows = of_products.reshape(-1, len(weight))  # [T B, G H]
    of_weight = rows.T @ hiddens.reshape(-1, weight.shape[-1])
    of_biases = tuple(
        sum_by_channel(x).astype(bias.dtype)
        for x, bias in zip((of_inputs, of_products), biases, strict=True)
    )
    return of_inputs, of_weight.astype(weight.dtype), of_biases, of_state, None


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
