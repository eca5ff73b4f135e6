"""Activation functions, with PyTorch's names."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated


def gelu(x: jax.Array) -> jax.Array:
    """Exact Gaussian error linear unit: x times the standard normal CDF of x.

    Returns x (1 + erf(x / √2)) / 2, as `torch.nn.functional.gelu` does, computed in float32 or
    higher precision. `jax.nn.gelu` uses the complementary error function erfc: it is more accurate
    where the result is almost zero, but takes twice as long.

    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _fraction_below(wide)).astype(x.dtype)


def _fraction_below(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5))


# Saves only x, in its own dtype; `jax.grad` would save intermediate results.


def _backward(saved: tuple[jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    (x,) = saved
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    return ((gradient * (_fraction_below(wide) + wide * density)).astype(x.dtype),)


gelu = accelerated(gelu, backward=_backward)

ACTIVATIONS = {"relu": nn.relu, "gelu": gelu}
