"""Random bits that cost little more than the memory they are written to.

JAX's own generator, threefry, takes longer over the masks of dropout than a small transformer over
its matrix products. Dropout needs far less: bits that look random and differ from key to key.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def random_bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Returns uint32[*shape], each a hash of the key and of the element's place.

    Places are counted over the whole array, wherever its parts lie, so that the bits are the same
    on any mesh of devices; beyond 2^32 elements they repeat. The hash is that of Appleby's
    MurmurHash3 for its last step, applied twice with half of the key before each time: every bit
    of key and place flips every bit of the result in half of all cases.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    return _mixed(_mixed(_places(shape) + first) ^ second)


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _places(shape: Sequence[int]) -> jax.Array:
    """uint32[*shape] that counts the elements, the last axis first."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        step = math.prod(shape[axis + 1 :]) % 2**32
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step)
    return places
