"""Argument checks that raise errors with the argument's name, its value and the allowed values."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

import chex

from flaxdl.errors import UserError


def check_shape(name: str, array: Any, axes: str, **sizes: int) -> None:
    """Checks the rank of `array` and the sizes of some of its axes.

    Args:
        name: name of the array; the error message begins with it.
        array: array, tracer or other object with a `shape` attribute.
        axes: axis names separated by spaces, as in `"B H W C"`; `...` stands for any number of
            axes, as in `"B ... C"`.
        **sizes: required sizes by axis name, as in `C=3`; other axes may have any size.

    Raises:
        UserError: if the rank or a size differs, for example
            `images must have shape [B, H, W, C=3], got [8, 32, 32, 1]`.
    """
    expected = [... if axis == "..." else sizes.get(axis) for axis in axes.split()]
    try:
        chex.assert_shape(array, tuple(expected))
    except AssertionError:
        layout = ", ".join(
            f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes.split()
        )
        raise UserError(f"{name} must have shape [{layout}], got {list(array.shape)}") from None


def check_integers(name: str, array: Any) -> None:
    """Checks that `array` has an integer dtype, as required for token IDs and lengths.

    Raises:
        UserError: if the array has another dtype; the message states the name and the dtype.
    """
    try:
        chex.assert_type(array, int)
    except AssertionError:
        raise UserError(f"{name} must be integers, got {array.dtype}") from None


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Checks that an option has one of the allowed values.

    Raises:
        UserError: if it has another value, for example
            `activation must be 'relu' or 'gelu', got 'selu'`.
    """
    if value not in allowed:
        raise UserError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as `; did you mean 'mnist'?`, or an empty string if no name is similar.

    The hint is appended to error messages about an unknown name.
    """
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
