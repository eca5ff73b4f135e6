"""Activations that lie between linear maps, by PyTorch's names."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated


def gelu(x: jax.Array) -> jax.Array:
    """The exact Gaussian error linear unit: x times the fraction of a normal distribution below x.

    x (1 + erf(x / √2)) / 2, as `torch.nn.functional.gelu` computes it, in float32 at least. JAX's
    own takes the complement erfc, which has more digits where the result is almost zero and is
    twice as slow (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _fraction_below(wide)).astype(x.dtype)


def _fraction_below(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


# What is saved is x alone, in its own precision; `jax.grad` would save what it computes on the way.


def _backward(saved: tuple[jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    (x,) = saved
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((gradient * (_fraction_below(wide) + wide * density)).astype(x.dtype),)


gelu = accelerated(gelu, backward=_backward)

ACTIVATIONS = {"relu": nn.relu, "gelu": gelu}
