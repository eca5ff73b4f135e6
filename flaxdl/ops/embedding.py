"""Embedding lookup.

Legend: ... any axes, V vocabulary, O features.
"""

import jax
import jax.numpy as jnp

from flaxdl.ops import thresholds
from flaxdl.ops.dispatch import accelerated


def embed(tokens: jax.Array, table: jax.Array, *, padding_index: int | None = None) -> jax.Array:
    """Looks up the embeddings of tokens in a table.

    Args:
        tokens: integers [...]. Tokens beyond the vocabulary give NaN; negative tokens count from
            the end of the table.
        table: [V, O].
        padding_index: index of a row that gets no gradient, if any.

    Returns:
        [..., O].
    """
    vectors = jnp.take(table, tokens, axis=0, mode="fill")
    if padding_index is None:
        return vectors
    is_padding = (tokens == padding_index)[..., None]
    return jnp.where(is_padding, jax.lax.stop_gradient(vectors), vectors)


# The gradient of a row is a sum over all occurrences of its token, of which there can be many. JAX
# accumulates 16-bit sums in 16 bits; here they are accumulated in float32 or higher precision.


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array, *, padding_index: int | None = None
) -> tuple[None, jax.Array]:
    tokens, table = saved
    gradient = gradient.astype(jnp.promote_types(table.dtype, jnp.float32))
    if padding_index is not None:
        gradient = jnp.where((tokens == padding_index)[..., None], 0, gradient)
    if len(table) <= thresholds.PRODUCT_ROWS:
        numbers = jnp.where(tokens < 0, tokens + len(table), tokens).reshape(-1)
        is_row = numbers == jnp.arange(len(table))[:, None]  # [V, N]
        rows = gradient.reshape(-1, gradient.shape[-1])
        d_table = jnp.matmul(is_row.astype(rows.dtype), rows, precision="highest")
    else:
        # `zeros_like` makes the zeros vary across devices under `shard_map`, like the sum.
        zeros = jnp.zeros_like(table, gradient.dtype)
        d_table = zeros.at[tokens].add(gradient, mode="drop")
    return None, d_table.astype(table.dtype)


embed = accelerated(
    embed,
    fast=lambda tokens, table, **_: jnp.take(table, tokens, axis=0, mode="fill"),
    backward=_backward,
)
