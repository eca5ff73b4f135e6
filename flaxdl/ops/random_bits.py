"""Fast random bits, for dropout masks.

In a small Transformer, JAX's default generator, threefry, takes longer for the dropout masks than
all matrix products take. Dropout only needs bits that look random and differ between keys. The hash
in this module costs little more than writing its results to memory.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def random_bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns random bits uint32[*shape]: a hash of the key and the index of each element.

    Indices do not depend on the sharding of the array, so the bits are the same on any device mesh.
    They repeat after 2^32 elements. The hash is the finalizer of Appleby's MurmurHash3, applied
    twice, each time after mixing in half of the key; flipping a bit of the key or the index flips
    each bit of the result with a probability of one half.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    return _mixed(_mixed(_places(shape) + first) ^ second)


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _places(shape: Sequence[int]) -> jax.Array:
    """Returns uint32[*shape], the index of each element, with the last axis varying fastest."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        step = math.prod(shape[axis + 1 :]) % 2**32
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step)
    return places
