"""Sums over whole arrays, and over all axes except the last.

Legend: B batch, ... spatial or time axes, C channels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops import thresholds
from flaxdl.ops.dispatch import accelerated, by_platform


def sum_by_channel(values: jax.Array) -> jax.Array:
    """Returns the sums [C] of [B, ..., C] over all axes except the last."""
    return values.sum(tuple(range(values.ndim - 1)))


def sum_of_squares(x: jax.Array) -> jax.Array:
    """Returns the sum of the squares of all values."""
    return jnp.sum(jnp.square(x))


def global_norm(gradients: Any, mesh: jax.sharding.Mesh | None = None) -> jax.Array:
    """Returns the L2 norm of all values in a tree.

    Args:
        gradients: tree of arrays.
        mesh: device mesh that the arrays are sharded across, if any.
    """
    # Splitting a sharded array into parts would move data between devices.
    is_whole = mesh is None or mesh.size == 1
    square = sum_of_squares if is_whole else _in_one
    return jnp.sqrt(sum(map(square, jax.tree.leaves(gradients)), jnp.float32(0)))


# On a CPU, XLA uses all cores for a matrix product and for adding parts of an array elementwise.
# Its sum over all axes except the last uses one core, and its sum of squares first stores the
# squares.

_in_one = sum_of_squares


def _product_with_ones(values: jax.Array) -> jax.Array:
    rows = values.reshape(-1, values.shape[-1])
    return jnp.matmul(jnp.ones(len(rows), rows.dtype), rows, precision="highest")


def _by_parts(x: jax.Array) -> jax.Array:
    first, *others = x.reshape(thresholds.PARTS, -1)
    total = jnp.square(first)
    for part in others:
        total += jnp.square(part)
    return jnp.sum(total)


def _sum_of_squares(x: jax.Array) -> jax.Array:
    has_parts = x.size >= thresholds.PARTED_VALUES and x.size % thresholds.PARTS == 0
    return (by_platform(_in_one, cpu=_by_parts) if has_parts else _in_one)(x)


sum_by_channel = accelerated(
    sum_by_channel, fast=by_platform(sum_by_channel, cpu=_product_with_ones)
)
sum_of_squares = accelerated(sum_of_squares, fast=_sum_of_squares)
