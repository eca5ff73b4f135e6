"""Normalization of each position over its features, with a gradient of its own.

The gradient is affine in the values and in the incoming gradient, with coefficients by position.
What `jax.grad` finds through mean and variance is the same in more passes over memory.

Legend: ... any leading axes, C features.
"""

from typing import Any

import jax
import jax.numpy as jnp


def normalize_features(
    epsilon: float, inputs: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Maps [..., C] to features of mean 0 and variance 1 at each position, times scale, plus bias.

    Args:
        epsilon: added to the variance before its root is taken.
        inputs: [..., C].
        scale: [C], in the dtype to compute in.
        bias: [C], likewise.
    """
    return _normalize(epsilon, inputs, scale, bias)


def _forward(
    epsilon: float, inputs: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, Any]:
    values = inputs.astype(scale.dtype)
    mean = values.mean(-1, keepdims=True)
    centred = values - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * inverse * scale + bias, (inputs, mean, inverse, scale)


def _backward(epsilon: float, saved: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    inputs, mean, inverse, scale = saved
    normalized = (inputs.astype(scale.dtype) - mean) * inverse
    scaled = gradient * scale
    along = (scaled * normalized).mean(-1, keepdims=True)
    of_values = inverse * (scaled - scaled.mean(-1, keepdims=True) - normalized * along)
    rows = tuple(range(gradient.ndim - 1))
    of_scale, of_bias = (gradient * normalized).sum(rows), gradient.sum(rows)
    return of_values.astype(inputs.dtype), of_scale, of_bias


_normalize: Any = jax.custom_vjp(lambda *given: _forward(*given)[0], nondiff_argnums=(0,))
_normalize.defvjp(_forward, _backward)
