"""Checks of window sizes for convolution and pooling."""

from collections.abc import Sequence

import jax

from flaxdl.errors import UserError


def per_axis(name: str, value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Returns one number per spatial axis; a single number applies to all of them.

    Raises:
        UserError: if the number of values differs from the number of axes.
    """
    numbers = (value,) * dimensions if isinstance(value, int) else tuple(value)
    if len(numbers) != dimensions:
        raise UserError(f"{name} must have {dimensions} numbers, one per axis, got {value}")
    return numbers


def check_window_fits(
    name: str, inputs: jax.Array, window: Sequence[int], padding: Sequence[int]
) -> None:
    """Checks that padded inputs [B, *spatial, C] contain at least one window.

    Raises:
        UserError: if the window is larger than the inputs; the message states both sizes.
    """
    sizes = inputs.shape[1:-1]
    padded = [size + 2 * amount for size, amount in zip(sizes, padding, strict=True)]
    if any(size < reach for size, reach in zip(padded, window, strict=True)):
        raise UserError(
            f"{name} must be at least as large as the window {list(window)}, "
            f"got {list(sizes)} with padding {list(padding)}"
        )
