"""Positions, without which attention could not tell the order of its inputs.

Legend: B batch, T steps, D features.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flaxdl.checks import check_choice, check_shape
from flaxdl.errors import UserError
from flaxdl.layers.initializers import normal
from flaxdl.ops.bias import add_bias


def sinusoidal_positions(length: int, hidden_size: int) -> np.ndarray:
    """Returns the waves [T, D] of Vaswani et al., "Attention Is All You Need", 2017, section 3.5.

    Features 2 i and 2 i + 1 are sine and cosine of t / 10000^(2 i / D), in float64.
    """
    features = np.arange(hidden_size)
    angles = np.arange(length)[:, None] / 10000 ** (features // 2 * 2 / hidden_size)
    return np.where(features % 2 == 0, np.sin(angles), np.cos(angles))


def nan_outside(values: jax.Array, position: jax.Array | int, last: int) -> jax.Array:
    """Returns the values, or NaN if their position is not from 0 to `last`.

    JAX moves a slice that begins elsewhere back to where it fits, and cannot raise under `jit`.

    Raises:
        UserError: if the position is known, and is elsewhere.
    """
    if isinstance(position, Tracer):
        return jnp.where((position >= 0) & (position <= last), values, jnp.nan)
    if not 0 <= int(position) <= last:
        raise UserError(f"position must be from 0 to {last}, got {int(position)}")
    return values


class AddPositions(nn.Module):
    """Adds to every step a vector that says where it is.

    Parameter, if learned: `embedding` [max_length, D], from the standard normal distribution as
    every embedding.
    """

    kind: Literal["sinusoidal", "learned"]
    """Whether the vectors are fixed waves or parameters."""
    max_length: int
    """Number of positions there are."""

    @nn.compact
    def __call__(self, inputs: jax.Array, position: jax.Array | int = 0) -> jax.Array:
        """Adds to [B, T, D] the vectors of T positions, from `position` on.

        A `position` without a vector cannot raise under `jit` and reads as NaN.

        Raises:
            UserError: if there are fewer positions than steps, or a known `position` has none.
        """
        check_choice("positions", self.kind, ("sinusoidal", "learned"))
        check_shape("inputs", inputs, "B T D")
        num_steps, hidden_size = inputs.shape[1:]
        if num_steps > self.max_length:
            raise UserError(
                f"inputs must have at most max_length = {self.max_length} steps, got {num_steps}"
            )
        if self.kind == "learned":
            shape = (self.max_length, hidden_size)
            table = self.param("embedding", normal(1.0), shape, jnp.float32)
        else:
            table = jnp.asarray(sinusoidal_positions(self.max_length, hidden_size), inputs.dtype)
        last = self.max_length - num_steps
        vectors = jax.lax.dynamic_slice_in_dim(table, position, num_steps)  # [T, D]
        return add_bias(inputs, nan_outside(vectors, position, last))
