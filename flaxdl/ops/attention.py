"""Scaled dot-product attention (Vaswani et al., "Attention Is All You Need", 2017).

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
    """Computes multi-head scaled dot-product attention.

    The outputs are softmax(Q Kᵀ / √K) V, with the softmax computed in float32 or higher precision.
    If all keys of a query are masked, its weights and its output are zero.

    Args:
        query: [B, T, D].
        key: [B, S, D].
        value: [B, S, D].
        mask: attention mask, as described in `flaxdl.ops.masks`; by default, no key is masked.
        num_heads: number of attention heads N, which must divide D.
        dropout: callable that is applied to the attention weights; by default, the identity.

    Returns:
        The outputs [B, T, D], and the attention weights [B, N, T, S] before dropout.

    Raises:
        UserError: if `num_heads` does not divide D, or the shape of the mask is invalid.
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
    """Returns the attention scores Q Kᵀ / √K, computed in float32 or higher precision.

    Args:
        query: [B, T, N, K].
        key: [B, S, N, K].

    Returns:
        [B, N, T, S].
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("btnk,bsnk->bnts", query, key, preferred_element_type=wide)
    return scores * query.shape[-1] ** -0.5


def attention_results(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, **settings: Any
) -> jax.Array:
    """Returns the outputs of `dot_product_attention` [B, T, D], without the weights.

    Since the weights are not needed, cuDNN's attention is used where possible. It does not call
    `dropout`, which must therefore be the identity. Second derivatives of cuDNN's attention require
    reference mode.
    """
    return dot_product_attention(query, key, value, mask, **settings)[0]


# The gradient of the scores has the dtype of the softmax. It is first rounded to the dtype of
# queries and keys; `jax.grad` would multiply matrices in the wider dtype.


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
