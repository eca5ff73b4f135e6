"""The gated recurrences, with derivatives in terms of what the gates let through.

The hyperbolic tangent is the only function computed, once for all gates of a step, since the
logistic function is (1 + tanh(x / 2)) / 2; the way back needs none, for the derivative of tanh is
1 - tanh². Gradients of `jax.grad` are the same numbers, found by computing them anew.

Legend: B batch, H hidden size.
"""

from typing import Any

import jax
import jax.numpy as jnp


def lstm_cell(
    from_input: jax.Array, from_hidden: jax.Array, memory: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns hidden state and memory [B, H] from [B, 4 H], in order: input, forget, new, output.

    Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000).
    """
    return _lstm(from_input, from_hidden, memory)


def gru_cell(from_input: jax.Array, from_hidden: jax.Array, state: jax.Array) -> jax.Array:
    """Returns the hidden state [B, H] from [B, 3 H], in the order reset, update, new.

    Cho et al. (2014), with the reset gate behind the product, as PyTorch has it.
    """
    return _gru(from_input, from_hidden, state)


def sigmoid(x: jax.Array) -> jax.Array:
    """The logistic function."""
    return 0.5 * jnp.tanh(0.5 * x) + 0.5


def _lstm_forward(from_input: jax.Array, from_hidden: jax.Array, memory: jax.Array) -> Any:
    # Three gates are logistic; the third quarter, what is new, is not.
    size = from_input.shape[-1] // 4
    is_new = (jnp.arange(4) == 2).repeat(size)
    scale = jnp.where(is_new, 1, 0.5).astype(from_input.dtype)
    passed = scale * jnp.tanh(scale * (from_input + from_hidden)) + (1 - scale)
    take, keep, new, show = jnp.split(passed, 4, axis=-1)
    updated = keep * memory + take * new
    seen = jnp.tanh(updated)
    return (show * seen, updated), (passed, memory, seen)


def _lstm_backward(saved: Any, gradients: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    passed, memory, seen = saved
    of_hidden, of_memory = gradients
    take, keep, new, show = jnp.split(passed, 4, axis=-1)
    of_updated = of_memory + of_hidden * show * (1 - seen * seen)
    of_gates = jnp.concatenate(
        [
            of_updated * new * take * (1 - take),
            of_updated * memory * keep * (1 - keep),
            of_updated * take * (1 - new * new),
            of_hidden * seen * show * (1 - show),
        ],
        axis=-1,
    )
    return of_gates, of_gates, of_updated * keep


_lstm: Any = jax.custom_vjp(lambda *given: _lstm_forward(*given)[0])
_lstm.defvjp(_lstm_forward, _lstm_backward)


def _gru_forward(from_input: jax.Array, from_hidden: jax.Array, state: jax.Array) -> Any:
    size = state.shape[-1]
    gates = sigmoid(from_input[:, : 2 * size] + from_hidden[:, : 2 * size])
    reset, update = jnp.split(gates, 2, axis=-1)
    recalled = from_hidden[:, 2 * size :]
    new = jnp.tanh(from_input[:, 2 * size :] + reset * recalled)
    return (1 - update) * new + update * state, (gates, recalled, new, state)


def _gru_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    gates, recalled, new, state = saved
    reset, update = jnp.split(gates, 2, axis=-1)
    of_new = gradient * (1 - update) * (1 - new * new)
    of_gates = [
        of_new * recalled * reset * (1 - reset),
        gradient * (state - new) * update * (1 - update),
    ]
    return (
        jnp.concatenate([*of_gates, of_new], axis=-1),
        jnp.concatenate([*of_gates, of_new * reset], axis=-1),
        gradient * update,
    )


_gru: Any = jax.custom_vjp(lambda *given: _gru_forward(*given)[0])
_gru.defvjp(_gru_forward, _gru_backward)
