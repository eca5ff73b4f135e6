"""cuDNN's attention, which does not write its weights to memory, and so does not show them.

The dropout that JAX offers with it would drop the same weights at every step, and is not used.

Legend: B batch, T queries, S keys and values, N heads, D features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import has_ampere
from flaxdl.ops.masks import check_mask

_HEAD_MULTIPLE = 8  # features of a head, as cuDNN asks for, and at most:
_HEAD_LIMIT = 128

_is_allowed = ContextVar("is_allowed", default=True)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Programs traced within use nothing of cuDNN's, so that they run anywhere."""
    token = _is_allowed.set(False)
    try:
        yield
    finally:
        _is_allowed.reset(token)


def suits_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    *,
    num_heads: int,
) -> bool:
    """Whether cuDNN computes this: in 16 bits, on an NVIDIA GPU from Ampere on.

    Heads must have a multiple of eight features and at most 128; with a mask the numbers of queries
    and keys must be even. Empty batches it does not compute.
    """
    size, rest = divmod(query.shape[-1], num_heads)
    is_narrow = query.dtype in (jnp.bfloat16, jnp.float16)
    is_one_dtype = query.dtype == key.dtype == value.dtype
    is_even = mask is None or (query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0)
    fits = (
        query.size > 0
        and key.size > 0
        and rest == 0
        and size % _HEAD_MULTIPLE == 0
        and size <= _HEAD_LIMIT
        and is_even
    )
    return _is_allowed.get() and is_narrow and is_one_dtype and fits and has_ampere()


def attend_by_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *, num_heads: int
) -> jax.Array:
    """The results of `dot_product_attention`, [B, T, D], where `suits_cudnn` says that it can.

    Raises:
        UserError: if the mask has another shape.
    """
    heads = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))
    if mask is None:
        return jax.nn.dot_product_attention(*heads, implementation="cudnn").reshape(query.shape)
    shape = (len(query), num_heads, query.shape[1], key.shape[1])
    check_mask(mask, shape)
    keep = mask.astype(bool).reshape((1,) * (4 - mask.ndim) + mask.shape)
    keep = jnp.broadcast_to(keep, (*keep.shape[:2], *shape[2:]))
    results = jax.nn.dot_product_attention(*heads, mask=keep, implementation="cudnn")
    # Where all keys are hidden cuDNN takes the mean of their values.
    sees_any = keep.any(-1).swapaxes(1, 2)[..., None]  # [B, T, N, 1]
    return jnp.where(sees_any, results, 0).reshape(query.shape)
