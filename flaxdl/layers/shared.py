"""What all examples share, such as a bias, added to each of them."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.layers.shard_map import varying_like


def add_shared(values: jax.Array, shared: jax.Array) -> jax.Array:
    """Adds an array [*own] to values [..., *own], in the dtype of the values.

    The gradient of what is shared is a sum over all examples and positions. In 16 bits JAX adds up
    in 16 bits, which loses what is small beside the sum; here it is float32 at least.
    """
    return _add(values, varying_like(shared.astype(values.dtype), values))


def _gradients(axes: tuple[int, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    return gradient, wide.sum(axes).astype(gradient.dtype)


def _leading(values: jax.Array, shared: jax.Array) -> tuple[int, ...]:
    return tuple(range(values.ndim - shared.ndim))


_add: Any = jax.custom_vjp(jnp.add)
_add.defvjp(lambda values, shared: (values + shared, _leading(values, shared)), _gradients)
