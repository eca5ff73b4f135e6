"""Checks of arguments, as errors that name the argument, its value and what is allowed."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

import chex

from flaxdl.errors import UserError


def check_shape(name: str, array: Any, axes: str, **sizes: int) -> None:
    """Checks that `array` has the given axes, and the given sizes on some of them.

    Args:
        name: name of the array for the caller; it begins the error message.
        array: anything with a `shape`, tracers included.
        axes: one word per axis, as in `"B H W C"`; `"B ... C"` leaves the middle open.
        **sizes: the axes whose size is fixed, as in `C=3`.

    Raises:
        UserError: if rank or sizes differ, as in
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
    """Checks that `array` holds integers, as token ids and lengths must.

    Raises:
        UserError: naming the argument and its dtype.
    """
    try:
        chex.assert_type(array, int)
    except AssertionError:
        raise UserError(f"{name} must be integers, got {array.dtype}") from None


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Checks that an option is one of a few words.

    Raises:
        UserError: as in `activation must be 'relu' or 'gelu', got 'selu'`.
    """
    if value not in allowed:
        raise UserError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'mnist'?` with the known name nearest to `name`, or nothing.

    It ends the error message about an unknown name.
    """
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
