"""Sums over whole arrays, and over all axes but the last.

Legend: B batch, ... spatial or time axes, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp

_LARGE = 2**18  # values; smaller arrays stay in a core's cache, and are summed at once
_PARTS = 16  # enough that what is left to sum takes no time


def sum_by_channel(values: jax.Array) -> jax.Array:
    """The sum of [B, ..., C] by channel, on a CPU as a product with ones, which uses all cores."""

    def product(values: jax.Array) -> jax.Array:
        rows = values.reshape(-1, values.shape[-1])
        return jnp.matmul(jnp.ones(len(rows), rows.dtype), rows, precision="highest")

    def plain(values: jax.Array) -> jax.Array:
        return values.sum(tuple(range(values.ndim - 1)))

    return jax.lax.platform_dependent(values, cpu=product, default=plain)


def global_norm(gradients: Any, mesh: jax.sharding.Mesh | None = None) -> jax.Array:
    """The root of the sum of the squares of all values of a tree.

    Args:
        gradients: a tree of arrays.
        mesh: the devices over which they are laid, if there are several.
    """
    is_whole = mesh is None or mesh.size == 1  # parts of what is laid over devices would move
    square = sum_of_squares if is_whole else _plain_sum
    return jnp.sqrt(sum(map(square, jax.tree.leaves(gradients)), jnp.float32(0)))


def sum_of_squares(x: jax.Array) -> jax.Array:
    """The sum of the squares of all values.

    A large array is added up by parts on a CPU, in one pass that uses all cores, where XLA by
    itself writes the squares down first.
    """
    if x.size < _LARGE or x.size % _PARTS:
        return _plain_sum(x)

    def by_parts(x: jax.Array) -> jax.Array:
        first, *others = x.reshape(_PARTS, -1)
        total = jnp.square(first)
        for part in others:
            total += jnp.square(part)
        return jnp.sum(total)

    return jax.lax.platform_dependent(x, cpu=by_parts, default=_plain_sum)


def _plain_sum(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x))
