"""Recurrent cells in PyTorch's variants: functions that compute the next state.

Legend: B batch, H hidden size.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated


def tanh_cell(from_input: jax.Array, from_hidden: jax.Array, h: jax.Array) -> jax.Array:
    """Elman cell (1990): h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    Args:
        from_input: W_ih x + b_ih, [B, H].
        from_hidden: W_hh h + b_hh, [B, H].
        h: current hidden state [B, H]; not used.

    Returns:
        The next h, [B, H].
    """
    return jnp.tanh(from_input + from_hidden)


def relu_cell(from_input: jax.Array, from_hidden: jax.Array, h: jax.Array) -> jax.Array:
    """Elman cell with ReLU instead of tanh; the arguments are those of `tanh_cell`."""
    return jax.nn.relu(from_input + from_hidden)


def lstm_cell(
    from_input: jax.Array,  # [B, 4 H], W_ih x + b_ih, in the order i, f, g, o
    from_hidden: jax.Array,  # [B, 4 H], W_hh h + b_hh
    state: tuple[jax.Array, jax.Array],  # h and c, [B, H]
) -> tuple[jax.Array, jax.Array]:
    """LSTM cell (Hochreiter and Schmidhuber, 1997) with forget gate (Gers et al., 2000).

    Returns:
        The next h and c, [B, H] each.
    """
    _, c = state
    i, f, g, o = jnp.split(from_input + from_hidden, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * c + i * g
    h = o * jnp.tanh(c)
    return h, c


def gru_cell(
    from_input: jax.Array,  # [B, 3 H], W_ih x + b_ih, in the order r, z, n
    from_hidden: jax.Array,  # [B, 3 H], W_hh h + b_hh
    h: jax.Array,  # [B, H]
) -> jax.Array:
    """GRU cell (Cho et al., 2014), in PyTorch's variant.

    The reset gate r multiplies W_hh h + b_hh instead of h.

    Returns:
        The next h, [B, H].
    """
    r_input, z_input, n_input = jnp.split(from_input, 3, axis=-1)
    r_hidden, z_hidden, n_hidden = jnp.split(from_hidden, 3, axis=-1)
    r = jax.nn.sigmoid(r_input + r_hidden)
    z = jax.nn.sigmoid(z_input + z_hidden)
    n = jnp.tanh(n_input + r * n_hidden)
    return (1 - z) * n + z * h


# Only tanh is evaluated, once for all gates of a step, since σ(x) = (1 + tanh(x / 2)) / 2. The
# backward pass reuses the gate values, since the derivative of tanh is 1 - tanh². `jax.grad` gives
# the same numbers, but recomputes them.


def _lstm_forward(from_input: jax.Array, from_hidden: jax.Array, state: Any) -> Any:
    # Three gates use σ; the third quarter, g, uses tanh.
    size = from_input.shape[-1] // 4
    is_g = (jnp.arange(4) == 2).repeat(size)
    scale = jnp.where(is_g, 1, 0.5).astype(from_input.dtype)
    gates = scale * jnp.tanh(scale * (from_input + from_hidden)) + (1 - scale)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = f * state[1] + i * g
    tanh_c = jnp.tanh(c)
    return (o * tanh_c, c), (gates, state[1], tanh_c)


def _lstm_backward(saved: Any, gradients: Any) -> tuple[Any, ...]:
    gates, c, tanh_c = saved  # c of the previous step
    d_h, d_c = gradients
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_i, d_f = d_c * g * i * (1 - i), d_c * c * f * (1 - f)
    d_g, d_o = d_c * i * (1 - g * g), d_h * tanh_c * o * (1 - o)
    d_gates = jnp.concatenate([d_i, d_f, d_g, d_o], axis=-1)
    return d_gates, d_gates, (None, d_c * f)


def _gru_forward(from_input: jax.Array, from_hidden: jax.Array, h: jax.Array) -> Any:
    size = h.shape[-1]
    gates = 0.5 * jnp.tanh(0.5 * (from_input[:, : 2 * size] + from_hidden[:, : 2 * size])) + 0.5
    r, z = jnp.split(gates, 2, axis=-1)
    n_hidden = from_hidden[:, 2 * size :]
    n = jnp.tanh(from_input[:, 2 * size :] + r * n_hidden)
    return (1 - z) * n + z * h, (gates, n_hidden, n, h)


def _gru_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    gates, n_hidden, n, h = saved
    r, z = jnp.split(gates, 2, axis=-1)
    d_n = gradient * (1 - z) * (1 - n * n)
    d_gates = [d_n * n_hidden * r * (1 - r), gradient * (h - n) * z * (1 - z)]
    d_input = jnp.concatenate([*d_gates, d_n], axis=-1)
    d_hidden = jnp.concatenate([*d_gates, d_n * r], axis=-1)
    return d_input, d_hidden, gradient * z


def _lstm(*arrays: Any) -> Any:
    return _lstm_forward(*arrays)[0]


def _gru(*arrays: Any) -> Any:
    return _gru_forward(*arrays)[0]


lstm_cell = accelerated(lstm_cell, fast=_lstm, forward=_lstm_forward, backward=_lstm_backward)
gru_cell = accelerated(gru_cell, fast=_gru, forward=_gru_forward, backward=_gru_backward)
