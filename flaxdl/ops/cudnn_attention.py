"""Attention by cuDNN's fused kernel, used where attention weights and dropout are not needed.

The kernel does not return the attention weights. Its dropout is not used, because through JAX's
interface it would drop the same weights at every step.

Legend: B batch, T queries, S keys and values, N heads, D features.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import has_ampere
from flaxdl.ops.masks import check_mask

_HEAD_MULTIPLE = 8  # the number of features per head must be a multiple of this
_HEAD_LIMIT = 128  # maximum number of features per head

_is_allowed = ContextVar("is_allowed", default=True)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Context manager that disables cuDNN in traced programs, so that they run on any platform."""
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
    """Returns True if cuDNN supports these inputs on the default device.

    The inputs must have the same 16-bit dtype and must not be empty. The number of features per
    head must be a multiple of 8 and at most 128; with a mask, the numbers of queries and keys must
    be even. The device must be an NVIDIA GPU of the Ampere generation or later.
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
    """Computes the outputs of `dot_product_attention` [B, T, D] by cuDNN.

    The inputs must be supported, as determined by `suits_cudnn`.

    Raises:
        UserError: if the shape of the mask is invalid.
    """
    heads = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))
    if mask is None:
        return jax.nn.dot_product_attention(*heads, implementation="cudnn").reshape(query.shape)
    shape = (len(query), num_heads, query.shape[1], key.shape[1])
    check_mask(mask, shape)
    keep = mask.astype(bool).reshape((1,) * (4 - mask.ndim) + mask.shape)
    keep = jnp.broadcast_to(keep, (*keep.shape[:2], *shape[2:]))
    results = jax.nn.dot_product_attention(*heads, mask=keep, implementation="cudnn")
    # If all keys are masked, cuDNN returns the mean of the values.
    sees_any = keep.any(-1).swapaxes(1, 2)[..., None]  # [B, T, N, 1]
    return jnp.where(sees_any, results, 0).reshape(query.shape)
