"""Layer normalization (Ba, Kiros and Hinton, "Layer Normalization", 2016).

Legend: ... any leading axes, C features.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated


def layer_norm(
    inputs: jax.Array,  # [..., C]
    scale: jax.Array,  # [C]
    bias: jax.Array,  # [C]
    *,
    epsilon: float,
) -> jax.Array:
    """Normalizes each position over its features, in the dtype of scale and bias.

    Args:
        inputs: [..., C].
        scale: [C], multiplied by the normalized features.
        bias: [C], added to the result.
        epsilon: constant added to the variance before taking its square root.

    Returns:
        [..., C].
    """
    x = inputs.astype(scale.dtype)
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + epsilon) * scale + bias


# The gradient is affine in the values and in the incoming gradient, with coefficients per position.
# `jax.grad` computes the same through mean and variance, in more passes over memory.


def _forward(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float
) -> tuple[jax.Array, Any]:
    x = inputs.astype(scale.dtype)
    mean = x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)
    return (x - mean) * inverse * scale + bias, (inputs, mean, inverse, scale)


def _backward(saved: Any, gradient: jax.Array, *, epsilon: float) -> tuple[jax.Array, ...]:
    inputs, mean, inverse, scale = saved
    normalized = (inputs.astype(scale.dtype) - mean) * inverse
    scaled = gradient * scale
    along = (scaled * normalized).mean(-1, keepdims=True)
    d_inputs = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalized * along)
    rows = tuple(range(gradient.ndim - 1))
    d_scale, d_bias = (gradient * normalized).sum(rows), gradient.sum(rows)
    return d_inputs.astype(inputs.dtype), d_scale, d_bias


layer_norm = accelerated(layer_norm, forward=_forward, backward=_backward)
