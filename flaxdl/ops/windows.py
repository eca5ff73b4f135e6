"""Slices of the inputs by position of the window, for convolution and pooling."""

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
    """For each position of the window the inputs [B, *spatial, C] under it, as [B, *windows, C].

    Args:
        inputs: the images, or whatever has as many spatial axes as there are numbers below.
        sizes: positions of a window; they are counted with the last axis first.
        strides: steps from window to window.
        padding: positions added on both sides.
        fill: what these hold.
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
