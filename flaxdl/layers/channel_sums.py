"""Sums over all axes but the last, which normalization and the gradients of biases take.

Legend: B batch, ... spatial or time axes, C channels.
"""

import jax
import jax.numpy as jnp


def sum_by_channel(values: jax.Array) -> jax.Array:
    """The sum of [B, ..., C] by channel, on a CPU as a product with ones, which uses all cores."""

    def product(values: jax.Array) -> jax.Array:
        rows = values.reshape(-1, values.shape[-1])
        return jnp.matmul(jnp.ones(len(rows), rows.dtype), rows, precision="highest")

    def plain(values: jax.Array) -> jax.Array:
        return values.sum(tuple(range(values.ndim - 1)))

    return jax.lax.platform_dependent(values, cpu=product, default=plain)
