"""Positional encodings.

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
    """Returns sinusoidal positional encodings, float64[T, D].

    At position t, features 2 i and 2 i + 1 are the sine and cosine of t / 10000^(2 i / D) (Vaswani
    et al., "Attention Is All You Need", 2017, section 3.5).

    Args:
        length: number of positions T.
        hidden_size: number of features D.
    """
    features = np.arange(hidden_size)
    angles = np.arange(length)[:, None] / 10000 ** (features // 2 * 2 / hidden_size)
    return np.where(features % 2 == 0, np.sin(angles), np.cos(angles))


def nan_outside(values: jax.Array, position: jax.Array | int, last: int) -> jax.Array:
    """Returns the values unchanged, or NaN if `position` is not from 0 to `last`.

    This is necessary because JAX clamps slices that are out of bounds and cannot raise errors under
    `jit`.

    Raises:
        UserError: if `position` is out of range and not traced.
    """
    if isinstance(position, Tracer):
        return jnp.where((position >= 0) & (position <= last), values, jnp.nan)
    if not 0 <= int(position) <= last:
        raise UserError(f"position must be from 0 to {last}, got {int(position)}")
    return values


class AddPositions(nn.Module):
    """Layer that adds positional encodings to its inputs.

    Learned encodings are the parameter `embedding` [max_length, D], initialized from the standard
    normal distribution, as in `Embedding`.
    """

    kind: Literal["sinusoidal", "learned"]
    """Type of encodings: `sinusoidal` (fixed) or `learned` (a parameter)."""
    max_length: int
    """Number of positions, and maximum sequence length."""

    @nn.compact
    def __call__(self, inputs: jax.Array, position: jax.Array | int = 0) -> jax.Array:
        """Adds the encodings of T positions, starting at `position`, to [B, T, D].

        If positions are out of range, the outputs are NaN under `jit`, where errors cannot be
        raised.

        Raises:
            UserError: if the inputs have more than `max_length` steps, or if positions are out of
                range and `position` is not traced.
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
