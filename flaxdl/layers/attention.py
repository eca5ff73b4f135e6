"""Attention modules, which differ in the names of their parameters.

Legend: B batch, T queries, S keys and values, N heads, K features of a head, D = N K features.

Masks are described in `flaxdl.ops.masks`.
"""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape
from flaxdl.layers.dropout import Dropout
from flaxdl.layers.initializers import constant, xavier_uniform
from flaxdl.layers.linear import Linear
from flaxdl.layers.positions import nan_outside
from flaxdl.ops.attention import attention_results, dot_product_attention
from flaxdl.ops.bias import add_bias


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
    settings = {"num_heads": num_heads, "dropout": partial(dropout, train=train)}
    is_seen = module.is_mutable_collection("intermediates")
    if is_seen or (train and dropout.rate > 0):
        results, weights = dot_product_attention(query, key, value, mask, **settings)
        module.sow("intermediates", "attention_weights", weights)
        return results
    return attention_results(query, key, value, mask, **settings)


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
            add_bias(x @ part.T, shift)
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
