"""Sums over whole arrays, and over all axes but the last.

Legend: B batch, ... spatial or time axes, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated, by_platform


def sum_by_channel(values: jax.Array) -> jax.Array:
    """The sum of [B, ..., C] by channel, [C]."""
    return values.sum(tuple(range(values.ndim - 1)))


def sum_of_squares(x: jax.Array) -> jax.Array:
    """The sum of the squares of all values."""
    return jnp.sum(jnp.square(x))


def global_norm(gradients: Any, mesh: jax.sharding.Mesh | None = None) -> jax.Array:
    """The root of the sum of the squares of all values of a tree.

    Args:
        gradients: a tree of arrays.
        mesh: the devices that the arrays are sharded across, if there are several.
    """
    is_whole = mesh is None or mesh.size == 1  # parts of a sharded array would move
    square = sum_of_squares if is_whole else _in_one
    return jnp.sqrt(sum(map(square, jax.tree.leaves(gradients)), jnp.float32(0)))


# A CPU uses all its cores for a product, and for parts that are added up element by element. XLA's
# own sum by channel uses one, and its sum of squares writes the squares down first.

_LARGE = 2**18  # values; smaller arrays stay in a core's cache, and are summed in one
_PARTS = 16  # enough that what is left to sum takes no time
_in_one = sum_of_squares


def _product_with_ones(values: jax.Array) -> jax.Array:
    rows = values.reshape(-1, values.shape[-1])
    return jnp.matmul(jnp.ones(len(rows), rows.dtype), rows, precision="highest")


def _by_parts(x: jax.Array) -> jax.Array:
    first, *others = x.reshape(_PARTS, -1)
    total = jnp.square(first)
    for part in others:
        total += jnp.square(part)
    return jnp.sum(total)


def _sum_of_squares(x: jax.Array) -> jax.Array:
    has_parts = x.size >= _LARGE and x.size % _PARTS == 0
    return (by_platform(_in_one, cpu=_by_parts) if has_parts else _in_one)(x)


sum_by_channel = accelerated(
    sum_by_channel, fast=by_platform(sum_by_channel, cpu=_product_with_ones)
)
sum_of_squares = accelerated(sum_of_squares, fast=_sum_of_squares)
