"""Dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.errors import UserError
from flaxdl.ops.random_bits import random_bits


class Dropout(nn.Module):
    """Zeroes a random share of the elements in training, as `torch.nn.Dropout`.

    What is kept is divided by the share kept, so that the expected value stays (Srivastava et al.,
    "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014). The randomness comes
    from the stream "dropout": `model.apply(variables, x, train=True, rngs={"dropout": key})`.
    """

    rate: float
    """The share of elements that become zero, between 0 and 1."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Returns the inputs themselves in inference, a random part of them in training.

        Raises:
            UserError: if the rate is not between 0 and 1.
        """
        if not 0 <= self.rate <= 1:
            raise UserError(f"rate of dropout must be between 0 and 1, got {self.rate}")
        if not train or self.rate == 0:
            return inputs
        if self.rate == 1:
            return jnp.zeros_like(inputs)
        bits = random_bits(self.make_rng("dropout"), inputs.shape)
        keep = bits >= jnp.uint32(self.rate * 2**32)
        return jnp.where(keep, inputs / (1 - self.rate), 0)
