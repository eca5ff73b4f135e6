"""What all examples share, such as a bias, added to each of them."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.shard_map import varying_like


def add_shared(values: jax.Array, shared: jax.Array) -> jax.Array:
    """Adds an array [*own] to values [..., *own], in the dtype of the values.

    The gradient of what is shared is a sum over all examples and positions. In 16 bits JAX adds up
    in 16 bits, which loses what is small beside the sum; here it is float32 at least.
    """
    leading = tuple(range(values.ndim - shared.ndim))
    return _add(leading, values, varying_like(shared.astype(values.dtype), values))


def _gradients(
    leading: tuple[int, ...], _: None, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    return gradient, wide.sum(leading).astype(gradient.dtype)


_add: Any = jax.custom_vjp(lambda leading, values, shared: values + shared, nondiff_argnums=(0,))
_add.defvjp(lambda leading, values, shared: (values + shared, None), _gradients)
