"""Multi-head attention, with separate or packed parameters for queries, keys and values.

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
    """Applies `dot_product_attention` in a module, and stores the attention weights on request.

    If the collection "intermediates" is mutable, the weights are stored in it as
    `attention_weights`. Otherwise, and without dropout, cuDNN is used where possible.

    Args:
        module: module that calls this function.
        query: [B, T, D].
        key: [B, S, D].
        value: [B, S, D].
        mask: attention mask, as described in `flaxdl.ops.masks`; None if no key is masked.
        train: whether to apply dropout.
        num_heads: number of attention heads N, which must divide D.
        dropout: layer that is applied to the attention weights.

    Returns:
        [B, T, D].

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
    """Multi-head attention with separate linear layers `W_q`, `W_k`, `W_v` and `W_o`.

    To get the attention weights [B, N, T, S] of this or any other attention module in a model, call
    `model.apply(..., mutable=["intermediates"])`. The returned collection contains them as
    `attention_weights`, under the name of each module.
    """

    hidden_size: int = 512
    """Number of features of queries, keys, values and outputs."""
    num_heads: int = 8
    """Number of attention heads, which must divide the number of features."""

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
            UserError: if shapes do not match, or `num_heads` does not divide `hidden_size`.
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
            dropout=Dropout(0.0, name="dropout"),  # the weights have no dropout
        )
        return Linear(self.hidden_size, name="W_o")(results)


class PackedMultiHeadAttention(nn.Module):
    """Equivalent of `torch.nn.MultiheadAttention`, with one `in_proj_weight` [3 D, D] for Q, K, V.

    For incremental decoding with a key-value cache, pass the `position` of the first step in
    queries, keys and values. Attention is then causal, regardless of `mask`. The mutable collection
    "cache" contains the `keys` and `values` [B, S, D] of earlier steps, and is updated with those
    of the new steps. If the cache is too short, the outputs are NaN under `jit`, where errors
    cannot be raised.
    """

    hidden_size: int
    """Number of features of queries, keys, values and outputs."""
    num_heads: int
    """Number of attention heads, which must divide the number of features."""
    dropout: float = 0.0
    """Dropout rate for the attention weights."""

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
            UserError: if shapes do not match, if `num_heads` does not divide `hidden_size`, or if
                the cache is too short for a `position` that is not traced.
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
        """Writes keys and values [B, T, D] into the cache, starting at `position`.

        Returns:
            All keys and values in the cache [B, S, D], and the causal mask [T, S] of the new steps.
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
    """Checks that the shapes of queries [B, T, D], keys and values [B, S, D] match.

    Raises:
        UserError: if a shape does not match; the message names the input.
    """
    check_shape("query", query, "B T D", D=hidden_size)
    check_shape("key", key, "B S D", B=query.shape[0], D=hidden_size)
    check_shape("value", value, "B S D", B=query.shape[0], S=key.shape[1], D=hidden_size)
