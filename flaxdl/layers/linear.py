"""The affine map and the table of embeddings.

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
        outputs = multiply(inputs.astype(dtype), kernel.astype(dtype))  # [..., O]
        if self.use_bias:
            bias_init = self.bias_init or uniform(1 / math.sqrt(in_features))
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            outputs = add_bias(outputs, bias)
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
        return embed(tokens, self.embedding, padding_index=self.padding_index)

    def _initial_table(self, key, shape, dtype):
        table = self.embedding_init(key, shape, dtype)
        return table if self.padding_index is None else table.at[self.padding_index].set(0)
