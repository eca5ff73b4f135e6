"""Attention (Vaswani et al., "Attention Is All You Need", 2017).

Legend: B batch, T queries, S keys and values, N heads, K features of a head, D = N K features.

Masks are described in `flaxdl.ops.masks`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.errors import UserError
from flaxdl.ops.cudnn_attention import attend_by_cudnn, suits_cudnn
from flaxdl.ops.dispatch import accelerated, by_platform
from flaxdl.ops.masks import check_mask


def dot_product_attention(
    query: jax.Array,  # [B, T, D]
    key: jax.Array,  # [B, S, D]
    value: jax.Array,  # [B, S, D]
    mask: jax.Array | None = None,
    *,
    num_heads: int,
    dropout: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> tuple[jax.Array, jax.Array]:
    """Returns for each query, head by head, the mean of the values weighted by their keys' fit.

    softmax(Q Kᵀ / √K) V, with the softmax in float32 at least. Where all keys are hidden, the
    weights are zero, and so is the result.

    Returns:
        The results [B, T, D], and the weights [B, N, T, S] before dropout.

    Raises:
        UserError: if the heads do not divide the features, or the mask has another shape.
    """
    if query.shape[-1] % num_heads:
        raise UserError(f"num_heads must divide the {query.shape[-1]} features, got {num_heads}")
    query, key, value = (
        x.reshape(*x.shape[:2], num_heads, x.shape[-1] // num_heads) for x in (query, key, value)
    )

    dtype = jnp.result_type(query, key)
    scores = attention_scores(query.astype(dtype), key.astype(dtype))  # [B, N, T, S]
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        check_mask(mask, scores.shape)
        keep = mask.astype(bool)
        weights = jax.nn.softmax(jnp.where(keep, scores, jnp.finfo(scores.dtype).min), axis=-1)
        weights = jnp.where(keep, weights, 0)
    weights = weights.astype(dtype)
    results = jnp.einsum("bnts,bsnk->btnk", dropout(weights), value)
    return results.reshape(*results.shape[:2], num_heads * value.shape[-1]), weights


def attention_scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """Q Kᵀ / √K of [B, T, N, K] and [B, S, N, K], [B, N, T, S] in float32 at least."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("btnk,bsnk->bnts", query, key, preferred_element_type=wide)
    return scores * query.shape[-1] ** -0.5


def attention_results(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, **settings: Any
) -> jax.Array:
    """The results of `dot_product_attention` alone, [B, T, D].

    The dropout must drop nothing: it is called only where there are weights, and cuDNN has none.
    Second derivatives need reference mode where cuDNN computes.
    """
    return dot_product_attention(query, key, value, mask, **settings)[0]


# The gradient of the scores comes in the precision of the softmax. It is rounded to that of queries
# and keys first; `jax.grad` would leave it wide, and multiply wide matrices.


def _backward(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    query, key = saved
    gradient = (gradient * query.shape[-1] ** -0.5).astype(query.dtype)
    d_query = jnp.einsum("bnts,bsnk->btnk", gradient, key)
    return d_query, jnp.einsum("bnts,btnk->bsnk", gradient, query)


_with_weights = attention_results


def _without_weights(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, **settings: Any
) -> jax.Array:
    plain = partial(_with_weights, mask=mask, **settings)
    if not suits_cudnn(query, key, value, mask, num_heads=settings["num_heads"]):
        return plain(query, key, value)
    by_cudnn = partial(attend_by_cudnn, mask=mask, num_heads=settings["num_heads"])
    return by_platform(plain, cuda=by_cudnn)(query, key, value)


attention_scores = accelerated(attention_scores, backward=_backward)
attention_results = accelerated(attention_results, fast=_without_weights)
