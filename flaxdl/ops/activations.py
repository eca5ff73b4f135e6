"""Activations that lie between linear maps, by PyTorch's names."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """The exact Gaussian error linear unit: x times the share of a normal distribution below x.

    x (1 + erf(x / √2)) / 2, as `torch.nn.functional.gelu` computes it, in float32 at least. JAX's
    own takes the complement erfc, which has more digits where the result is almost zero and is
    twice as slow (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
    """
    return _gelu(x)


def _share_below(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


def _alone(x: jax.Array) -> jax.Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _share_below(wide)).astype(x.dtype)


def _backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((gradient * (_share_below(wide) + wide * density)).astype(x.dtype),)


# What is kept is x alone, in its own precision; `jax.grad` would keep what it computes on the way.
_gelu: Any = jax.custom_vjp(_alone)
_gelu.defvjp(lambda x: (_gelu(x), x), _backward)

ACTIVATIONS = {"relu": nn.relu, "gelu": gelu}
