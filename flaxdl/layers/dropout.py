"""Dropout, and drop path (stochastic depth)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.errors import UserError
from flaxdl.ops.random_bits import random_bits


class Dropout(nn.Module):
    """Dropout equivalent to `torch.nn.Dropout`: zeroes random elements in training.

    The other elements are divided by `1 - rate`, which preserves the expected value. Random numbers
    come from the RNG stream "dropout", as in
    `model.apply(variables, x, train=True, rngs={"dropout": key})`.

    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014.
    """

    rate: float
    """Probability of zeroing an element, in [0, 1]."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Applies dropout in training; returns the inputs unchanged in inference.

        Raises:
            UserError: if the rate is not in [0, 1].
        """
        if not 0 <= self.rate <= 1:
            raise UserError(f"dropout rate must be between 0 and 1, got {self.rate}")
        if not train or self.rate == 0:
            return inputs
        if self.rate == 1:
            return jnp.zeros_like(inputs)
        bits = random_bits(self.make_rng("dropout"), inputs.shape)
        keep = bits >= jnp.uint32(self.rate * 2**32)
        return jnp.where(keep, inputs / (1 - self.rate), 0)


class DropPath(nn.Module):
    """Drop path (stochastic depth): zeroes the residual branch of random examples in training.

    Equivalent to `torchvision.ops.stochastic_depth` with `mode="row"`, and to timm's `DropPath`.
    The branches of the other examples are divided by `1 - rate`, which preserves the expected
    value. Apply it to the output of a branch, before the addition, as in
    `x + DropPath(0.1)(branch(x), train)`. Random numbers come from the RNG stream "dropout".

    Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """

    rate: float
    """Probability of dropping the branch of an example, in [0, 1)."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Applies drop path to branches [B, ...]; returns the inputs unchanged in inference.

        Raises:
            UserError: if the rate is not in [0, 1).
        """
        _check_drop_path(self.rate)
        if not train or self.rate == 0:
            return inputs
        bits = random_bits(self.make_rng("dropout"), inputs.shape[:1])
        keep = bits >= jnp.uint32(self.rate * 2**32)  # [B]
        keep = keep.reshape(-1, *(1,) * (inputs.ndim - 1))
        return jnp.where(keep, inputs / (1 - self.rate), 0)


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Returns the drop path rate of each block: linear from 0 in the first to `rate` in the last.

    Early blocks are dropped less often, because all later blocks use their features (Huang et al.,
    "Deep Networks with Stochastic Depth", 2016). As in timm, the values are
    `linspace(0, rate, depth)`, so a single block has rate 0.

    >>> flaxdl.layers.drop_path_rates(0.2, 5)
    (0.0, 0.05, 0.1, 0.15000000000000002, 0.2)

    Args:
        rate: drop path rate of the last block, in [0, 1).
        depth: number of blocks.

    Raises:
        UserError: if the rate is not in [0, 1).
    """
    _check_drop_path(rate)
    return tuple(rate * (block / max(depth - 1, 1)) for block in range(depth))


def _check_drop_path(rate: float) -> None:
    if not 0 <= rate < 1:
        raise UserError(f"drop path rate must be at least 0 and less than 1, got {rate}")
