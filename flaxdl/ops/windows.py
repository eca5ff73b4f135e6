"""What convolution and pooling have in common: sizes of windows, one for each spatial axis."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.errors import UserError


def per_axis(name: str, value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Returns one number for each spatial axis; a single number stands for all of them.

    Raises:
        UserError: if there are numbers for another count of axes.
    """
    numbers = (value,) * dimensions if isinstance(value, int) else tuple(value)
    if len(numbers) != dimensions:
        raise UserError(f"{name} must have {dimensions} numbers, one per axis, got {value}")
    return numbers


def check_window_fits(
    name: str, inputs: jax.Array, window: Sequence[int], padding: Sequence[int]
) -> None:
    """Checks that [B, *spatial, C], once padded, holds at least one window.

    Raises:
        UserError: naming the inputs, with both sizes.
    """
    sizes = inputs.shape[1:-1]
    padded = [size + 2 * amount for size, amount in zip(sizes, padding, strict=True)]
    if any(size < reach for size, reach in zip(padded, window, strict=True)):
        raise UserError(
            f"{name} must be at least as large as the window {list(window)}, "
            f"got {list(sizes)} with padding {list(padding)}"
        )


def slices_of_windows(
    inputs: jax.Array,
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    fill: float = 0.0,
) -> list[jax.Array]:
    """What each position of the windows sees of [B, *spatial, C], as [B, *windows, C].

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
