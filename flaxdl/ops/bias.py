"""Addition of biases."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated


def add_bias(inputs: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias [*shape] to inputs [..., *shape], in the dtype of the inputs."""
    return inputs + bias.astype(inputs.dtype)


# The gradient of a bias is a sum over all examples and positions. JAX accumulates 16-bit sums in 16
# bits, which loses small terms; here they are accumulated in float32 or higher precision.


def _forward(inputs: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    return inputs + bias.astype(inputs.dtype), bias  # needed for its shape and dtype


def _backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    leading = tuple(range(gradient.ndim - bias.ndim))
    return gradient, wide.sum(leading).astype(bias.dtype)


add_bias = accelerated(add_bias, forward=_forward, backward=_backward)
