"""Attention: one function, and the modules that differ in the names of their parameters.

Legend: B batch, T queries, S keys and values, N heads, K features of a head, D = N K features.

Masks are described in `flaxdl.ops.masks`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape
from flaxdl.errors import UserError
from flaxdl.layers.dropout import Dropout
from flaxdl.layers.initializers import constant, xavier_uniform
from flaxdl.layers.linear import Linear
from flaxdl.layers.positions import nan_outside
from flaxdl.ops.bias import add_shared
from flaxdl.ops.cudnn_attention import attend_by_cudnn, suits_cudnn
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

    softmax(Q Kᵀ / √K) V, with the softmax in float32 at least (Vaswani et al., "Attention Is All
    You Need", 2017). Where all keys are hidden, the weights are zero, and so is the result.

    Returns:
        The results [B, T, D], and the weights [B, N, T, S] before dropout.

    Raises:
        UserError: if the heads do not divide the features, or the mask has another shape.
    """
    if query.shape[-1] % num_heads:
        raise UserError(f"num_heads must divide the {query.shape[-1]} features, got {num_heads}")
    query, key, value = (x.reshape(*x.shape[:2], num_heads, -1) for x in (query, key, value))

    dtype = jnp.result_type(query, key)
    query, key, wide = query.astype(dtype), key.astype(dtype), jnp.promote_types(dtype, jnp.float32)
    scores = _scores(query, key) * query.shape[-1] ** -0.5
    if mask is None:
        weights = nn.softmax(scores, axis=-1)
    else:
        check_mask(mask, scores.shape)
        keep = mask.astype(bool)
        weights = nn.softmax(jnp.where(keep, scores, jnp.finfo(wide).min), axis=-1)
        weights = jnp.where(keep, weights, 0)
    weights = weights.astype(query.dtype)
    results = jnp.einsum("bnts,bsnk->btnk", dropout(weights), value)
    return results.reshape(*results.shape[:2], -1), weights


def _products(query: jax.Array, key: jax.Array) -> jax.Array:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    return jnp.einsum("btnk,bsnk->bnts", query, key, preferred_element_type=wide)


def _gradients_of_products(
    saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Those of the einsum, from a gradient in the precision of queries and keys.

    `jax.grad` would leave it wide, and multiply wide matrices.
    """
    query, key = saved
    gradient = gradient.astype(query.dtype)
    of_query = jnp.einsum("bnts,bsnk->btnk", gradient, key)
    return of_query, jnp.einsum("bnts,btnk->bsnk", gradient, query)


# The product of each query [B, T, N, K] with each key [B, S, N, K], in float32 at least.
_scores: Any = jax.custom_vjp(_products)
_scores.defvjp(lambda query, key: (_scores(query, key), (query, key)), _gradients_of_products)


def attend(
    module: nn.Module,
    query: jax.Array,  # [B, T, D]
    key: jax.Array,  # [B, S, D]
    value: jax.Array,  # [B, S, D]
    mask: jax.Array | None,
    train: bool,
    *,
    num_heads: int,
    dropout: Dropout,
) -> jax.Array:
    """What `dot_product_attention` makes of queries, keys and values in a module, [B, T, D].

    Where the collection "intermediates" is mutable it gets the weights, as `attention_weights`.
    Where nobody asks for them and none is dropped, cuDNN computes the results if it can.

    Raises:
        UserError: as in `dot_product_attention`.
    """

    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        return dot_product_attention(
            query, key, value, mask, num_heads=num_heads, dropout=partial(dropout, train=train)
        )

    is_seen = module.is_mutable_collection("intermediates")
    is_dropped = train and dropout.rate > 0
    if is_seen or is_dropped or not suits_cudnn(query, key, value, mask, num_heads=num_heads):
        results, weights = plain(query, key, value)
        module.sow("intermediates", "attention_weights", weights)
        return results
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        cuda=partial(attend_by_cudnn, mask=mask, num_heads=num_heads),
        default=lambda *given: plain(*given)[0],
    )


class MultiHeadAttention(nn.Module):
    """The document's attention, with four matrices: `W_q`, `W_k`, `W_v` and `W_o`.

    The weights [B, N, T, S] can be had from any model, from this and the other attentions alike:
    `model.apply(..., mutable=["intermediates"])` also returns each as `attention_weights`.
    """

    hidden_size: int = 512
    """Features of queries, keys, values and results."""
    num_heads: int = 8
    """Number of parts that these features are split into."""

    tensor_axes: ClassVar[dict[str, int]] = {"*W_[qkv].*": 0, "*W_o.weight": 1}

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Maps queries [B, T, D], keys and values [B, S, D] to [B, T, D].

        Raises:
            UserError: if sizes do not fit, or the heads do not divide the features.
        """
        check_inputs(query, key, value, self.hidden_size)
        results = attend(
            self,
            Linear(self.hidden_size, name="W_q")(query),
            Linear(self.hidden_size, name="W_k")(key),
            Linear(self.hidden_size, name="W_v")(value),
            mask,
            train=False,
            num_heads=self.num_heads,
            dropout=Dropout(0.0, name="dropout"),  # the document's attention has none
        )
        return Linear(self.hidden_size, name="W_o")(results)


class PackedMultiHeadAttention(nn.Module):
    """`torch.nn.MultiheadAttention`: three of the matrices lie in one, `in_proj_weight` [3 D, D].

    It can also read a sequence step by step. Given a `position`, the queries, keys and values are
    those of the steps from there on; `keys` and `values` [B, S, D] in the collection "cache", which
    the caller provides and gets back, hold the earlier steps and take in these. A `position` for
    which the cache is too short cannot raise under `jit` and makes NaN.
    """

    hidden_size: int
    """Features of queries, keys, values and results."""
    num_heads: int
    """Number of parts that these features are split into."""
    dropout: float = 0.0
    """Share of the attention weights that is zeroed in training."""

    tensor_axes: ClassVar[dict[str, int]] = {"*out_proj.weight": 1}

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        position: jax.Array | None = None,
    ) -> jax.Array:
        """Maps queries [B, T, D], keys and values [B, S, D] to [B, T, D].

        Raises:
            UserError: if sizes do not fit, or the heads do not divide the features.
        """
        D = self.hidden_size
        check_inputs(query, key, value, D)
        weight = self.param("in_proj_weight", xavier_uniform, (3 * D, D), jnp.float32)
        bias = self.param("in_proj_bias", constant(0.0), (3 * D,), jnp.float32)
        query, key, value = (
            add_shared(x @ part.T, shift)
            for x, part, shift in zip(
                (query, key, value), weight.reshape(3, D, D), bias.reshape(3, D), strict=True
            )
        )
        if position is not None:
            key, value, mask = self._remember(key, value, position)
        results = attend(
            self,
            query,
            key,
            value,
            mask,
            train,
            num_heads=self.num_heads,
            dropout=Dropout(self.dropout, name="dropout"),
        )
        return Linear(D, bias_init=constant(0.0), name="out_proj")(results)

    def _remember(
        self, key: jax.Array, value: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Writes the steps [B, T, D] from `position` on into the cache.

        Returns:
            All keys and values of the cache [B, S, D], and the mask [T, S] that hides from each
            step what comes after it.
        """
        for name, new in (("keys", key), ("values", value)):
            earlier = self.get_variable("cache", name)
            new = nan_outside(new, position, earlier.shape[1] - new.shape[1])
            updated = jax.lax.dynamic_update_slice_in_dim(earlier, new, position, axis=1)
            self.put_variable("cache", name, updated)
        keys, values = self.get_variable("cache", "keys"), self.get_variable("cache", "values")
        steps = position + jnp.arange(key.shape[1])
        return keys, values, jnp.arange(keys.shape[1]) <= steps[:, None]


def check_inputs(query: jax.Array, key: jax.Array, value: jax.Array, hidden_size: int) -> None:
    """Checks that queries [B, T, D] fit keys and values [B, S, D].

    Raises:
        UserError: naming the one that does not fit.
    """
    check_shape("query", query, "B T D", D=hidden_size)
    check_shape("key", key, "B S D", B=query.shape[0], D=hidden_size)
    check_shape("value", value, "B S D", B=query.shape[0], S=key.shape[1], D=hidden_size)
