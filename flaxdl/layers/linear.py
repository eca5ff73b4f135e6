"""Linear and embedding layers.

Legend: ... any leading axes, I input features, O output features, V vocabulary.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_integers, check_shape
from flaxdl.layers.initializers import Initializer, kaiming_uniform, normal, uniform
from flaxdl.ops.bias import add_bias
from flaxdl.ops.embedding import embed
from flaxdl.ops.products import multiply


class Linear(nn.Module):
    """Linear layer equivalent to `torch.nn.Linear`: matrix product over the last axis, plus bias.

    The parameters are `kernel` [I, O] and `bias` [O]. The outputs have the dtype to which the
    dtypes of inputs and kernel are promoted.
    """

    features: int
    """Number of output features."""
    use_bias: bool = True
    """Add a learnable bias."""
    kernel_init: Initializer = kaiming_uniform
    """Initializer of the kernel."""
    bias_init: Initializer | None = None
    """Initializer of the bias; by default, uniform in (−a, a) with a = 1 / √I."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps [..., I] to [..., O].

        Raises:
            UserError: if the parameters were initialized for another number of input features.
        """
        if self.has_variable("params", "kernel"):
            expected = self.get_variable("params", "kernel").shape[0]
            name = f"inputs of {'.'.join(self.path) or 'Linear'}"
            check_shape(name, inputs, "... I", I=expected)
        in_features = inputs.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (in_features, self.features), jnp.float32)
        dtype = jnp.result_type(inputs, kernel)
        outputs = multiply(inputs.astype(dtype), kernel.astype(dtype))  # [..., O]
        if self.use_bias:
            bias_init = self.bias_init or uniform(1 / math.sqrt(in_features))
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            outputs = add_bias(outputs, bias)
        return outputs


class Embedding(nn.Module):
    """Embedding lookup equivalent to `torch.nn.Embedding`.

    The parameter `embedding` [V, O] is initialized from the standard normal distribution. The
    padding row, if any, is initialized to zero and gets no gradient, so it stays zero. Token IDs
    beyond the vocabulary give NaN, since errors cannot be raised under `jit`; negative IDs count
    from the end of the vocabulary.

    Output layers with tied weights can read the table from the attribute `embedding`.
    """

    vocab_size: int
    """Number of embeddings (rows of the table)."""
    features: int
    """Number of features of each embedding."""
    padding_index: int | None = None
    """Index of the padding token, if any; its embedding is not trained."""
    embedding_init: Initializer = normal(1.0)
    """Initializer of the table, except for the row of the padding token."""

    def setup(self) -> None:
        """Creates the embedding table."""
        self.embedding = self.param(
            "embedding", self._initial_table, (self.vocab_size, self.features), jnp.float32
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens int32[...] to embeddings [..., O].

        Raises:
            UserError: if the tokens are not integers.
        """
        check_integers("tokens", tokens)
        return embed(tokens, self.embedding, padding_index=self.padding_index)

    def _initial_table(self, key, shape, dtype):
        table = self.embedding_init(key, shape, dtype)
        return table if self.padding_index is None else table.at[self.padding_index].set(0)
