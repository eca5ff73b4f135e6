"""The affine map and the table of embeddings.

Legend: ... any leading axes, I input features, O output features, V vocabulary.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_integers, check_shape
from flaxdl.layers.initializers import Initializer, kaiming_uniform, normal, uniform
from flaxdl.ops.bias import add_shared
from flaxdl.ops.products import multiply
from flaxdl.ops.shard_map import varying_like


class Linear(nn.Module):
    """Multiplies the last axis by a matrix and adds a bias, as `torch.nn.Linear`.

    Parameters: `kernel` [I, O] and `bias` [O]. Computes in the common dtype of inputs and kernel.
    """

    features: int
    """Size of the last axis of the result."""
    use_bias: bool = True
    """Whether to add a bias."""
    kernel_init: Initializer = kaiming_uniform
    """What the kernel starts from."""
    bias_init: Initializer | None = None
    """What the bias starts from; uniform within ±1/√I if None."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., I] to [..., O].

        Raises:
            UserError: if the parameters belong to another number of input features.
        """
        if self.has_variable("params", "kernel"):
            expected = self.get_variable("params", "kernel").shape[0]
            name = f"inputs of {'.'.join(self.path) or 'Linear'}"
            check_shape(name, inputs, "... I", I=expected)
        in_features = inputs.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (in_features, self.features), jnp.float32)
        dtype = jnp.result_type(inputs, kernel)
        inputs, kernel = inputs.astype(dtype), varying_like(kernel.astype(dtype), inputs)
        outputs = multiply(inputs, kernel)  # [..., O]
        if self.use_bias:
            bias_init = self.bias_init or uniform(1 / math.sqrt(in_features))
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            outputs = add_shared(outputs, bias)
        return outputs


class Embedding(nn.Module):
    """Looks each token's vector up in a table, as `torch.nn.Embedding`.

    The parameter `embedding` [V, O] starts from the standard normal distribution. The padding row,
    if there is one, starts at zero and never gets a gradient, so it stays zero. An id beyond
    the vocabulary cannot raise under `jit` and reads as NaN; a negative one counts from its end.

    A head that shares the table reads it as the attribute `embedding`.
    """

    vocab_size: int
    """Number of rows of the table."""
    features: int
    """Size of each vector."""
    padding_index: int | None = None
    """The token whose vector is not trained."""
    embedding_init: Initializer = normal(1.0)
    """What the other rows start from."""

    def setup(self) -> None:
        """Creates the table."""
        self.embedding = self.param(
            "embedding", self._initial_table, (self.vocab_size, self.features), jnp.float32
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens int32[...] to vectors [..., O].

        Raises:
            UserError: if the tokens are not integers.
        """
        check_integers("tokens", tokens)
        vectors = _look_up(tokens, varying_like(self.embedding, tokens))  # [..., O]
        if self.padding_index is None:
            return vectors
        is_padding = (tokens == self.padding_index)[..., None]
        return jnp.where(is_padding, jax.lax.stop_gradient(vectors), vectors)

    def _initial_table(self, key, shape, dtype):
        table = self.embedding_init(key, shape, dtype)
        return table if self.padding_index is None else table.at[self.padding_index].set(0)


_FEW_ROWS = 8


def _rows(tokens: jax.Array, table: jax.Array) -> jax.Array:
    return jnp.take(table, tokens, axis=0, mode="fill")


def _gradient_of_table(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple:
    """The sum of the gradients of each row, in float32 at least: a row can occur very often."""
    tokens, table = saved
    gradient = gradient.astype(jnp.promote_types(table.dtype, jnp.float32))
    if len(table) <= _FEW_ROWS:  # on a GPU all would wait for each other to add to the same row
        numbers = jnp.where(tokens < 0, tokens + len(table), tokens).reshape(-1)
        is_row = numbers == jnp.arange(len(table))[:, None]  # [V, N]
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_table = jnp.matmul(is_row.astype(rows.dtype), rows, precision="highest")
    else:
        zeros = varying_like(jnp.zeros(table.shape, gradient.dtype), gradient)
        of_table = zeros.at[tokens].add(gradient, mode="drop")
    return None, of_table.astype(table.dtype)


_look_up: Any = jax.custom_vjp(_rows)
_look_up.defvjp(lambda tokens, table: (_rows(tokens, table), (tokens, table)), _gradient_of_table)
