"""The look-up of vectors in a table.

Legend: ... any axes, V vocabulary, O features.
"""

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated


def embed(tokens: jax.Array, table: jax.Array, *, padding_index: int | None = None) -> jax.Array:
    """Looks up the vectors [..., O] of tokens, integers [...], in a table [V, O].

    A token beyond the vocabulary reads as NaN, a negative one counts from the end, and the row of
    `padding_index` gets no gradient.
    """
    vectors = jnp.take(table, tokens, axis=0, mode="fill")
    if padding_index is None:
        return vectors
    is_padding = (tokens == padding_index)[..., None]
    return jnp.where(is_padding, jax.lax.stop_gradient(vectors), vectors)


# The gradient of a row is the sum over all its occurrences, of which there can be many: in 16 bits
# JAX adds up in 16 bits, and here it is float32 at least.

_FEW_ROWS = 8  # up to which on a GPU all would wait for each other to add to the same row


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array, *, padding_index: int | None = None
) -> tuple[None, jax.Array]:
    tokens, table = saved
    gradient = gradient.astype(jnp.promote_types(table.dtype, jnp.float32))
    if padding_index is not None:
        gradient = jnp.where((tokens == padding_index)[..., None], 0, gradient)
    if len(table) <= _FEW_ROWS:
        numbers = jnp.where(tokens < 0, tokens + len(table), tokens).reshape(-1)
        is_row = numbers == jnp.arange(len(table))[:, None]  # [V, N]
        rows = gradient.reshape(-1, gradient.shape[-1])
        d_table = jnp.matmul(is_row.astype(rows.dtype), rows, precision="highest")
    else:
        # Zeros like the table's differ from device to device under `shard_map`, as the sum will.
        zeros = jnp.zeros_like(table, gradient.dtype)
        d_table = zeros.at[tokens].add(gradient, mode="drop")
    return None, d_table.astype(table.dtype)


embed = accelerated(
    embed,
    fast=lambda tokens, table, **_: jnp.take(table, tokens, axis=0, mode="fill"),
    backward=_backward,
)
