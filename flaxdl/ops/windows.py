"""Slices of the inputs for each position of a window, for convolution and pooling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def slices_of_windows(
    inputs: jax.Array,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    fill: float = 0.0,
) -> list[jax.Array]:
    """Returns, for each position in a window, the inputs at that position in all windows.

    Args:
        inputs: [B, *spatial, C].
        sizes: size of the window along each spatial axis.
        strides: step between neighboring windows along each spatial axis.
        padding: number of positions added on both sides of each spatial axis.
        fill: value of the padding.

    Returns:
        One array [B, *windows, C] per position; positions are in the order in which the last axis
        varies fastest.
    """
    width = [(0, 0), *((amount, amount) for amount in padding), (0, 0)]
    padded = jnp.pad(inputs, width, constant_values=fill)
    counts = [
        (size - window) // stride + 1
        for size, window, stride in zip(padded.shape[1:-1], sizes, strides, strict=True)
    ]
    return [
        padded[
            :,
            *(
                slice(start, start + (count - 1) * stride + 1, stride)
                for start, count, stride in zip(offset, counts, strides, strict=True)
            ),
        ]
        for offset in np.ndindex(*sizes)
    ]
