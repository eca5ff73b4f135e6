"""Shape checks for the arguments of public functions, as errors that name the argument."""

from typing import Any

import chex


def check_shape(name: str, array: Any, axes: str, **sizes: int) -> None:
    """Checks that `array` has the given axes, and the given sizes on some of them.

    Args:
        name: what the caller knows the array as; it begins the error message.
        array: anything with a `shape`, tracers included.
        axes: one word per axis, as in `"B H W C"`; `"B ... C"` leaves the middle open.
        **sizes: the axes whose size is fixed, as in `C=3`.

    Raises:
        ValueError: if rank or sizes differ, as in
            `images must have shape [B, H, W, C=3], got [8, 32, 32, 1]`.
    """
    expected = [... if axis == "..." else sizes.get(axis) for axis in axes.split()]
    try:
        chex.assert_shape(array, tuple(expected))
    except AssertionError:
        layout = ", ".join(
            f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes.split()
        )
        raise ValueError(f"{name} must have shape [{layout}], got {list(array.shape)}") from None


def check_integers(name: str, array: Any) -> None:
    """Checks that `array` holds integers, as token ids and lengths must.

    Raises:
        ValueError: naming the argument and the dtype it has.
    """
    try:
        chex.assert_type(array, int)
    except AssertionError:
        raise ValueError(f"{name} must be integers, got {array.dtype}") from None
