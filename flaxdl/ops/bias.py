"""Biases: arrays that all examples share, added to each of them."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated


def add_bias(inputs: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias [*own] to inputs [..., *own], in the dtype of the inputs."""
    return inputs + bias.astype(inputs.dtype)


# The gradient of a bias is a sum over all examples and positions. In 16 bits JAX adds up in 16
# bits, which loses what is small beside the sum; here it is float32 at least.


def _forward(inputs: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    return inputs + bias.astype(inputs.dtype), bias  # saved for its shape and dtype


def _backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    leading = tuple(range(gradient.ndim - bias.ndim))
    return gradient, wide.sum(leading).astype(bias.dtype)


add_bias = accelerated(add_bias, forward=_forward, backward=_backward)
