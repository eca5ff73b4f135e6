"""Pooling: the maximum or the average of windows over one to three spatial axes.

Legend: B batch, *spatial one to three axes, C channels; *windows as many positions along each.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.ops.dispatch import accelerated, by_platform
from flaxdl.ops.windows import slices_of_windows


def max_pool(
    inputs: jax.Array,  # [B, *spatial, C]
    *,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
) -> jax.Array:
    """The maximum of each window, [B, *windows, C]; the first of equal ones gets the gradient.

    Args:
        inputs: [B, *spatial, C].
        window: positions in a window; a number for each spatial axis, here and below.
        strides: steps from window to window.
        padding: positions added on both sides, which hold minus infinity.
    """
    return _reduce_windows(inputs, jax.lax.max, -jnp.inf, window, strides, padding)


def avg_pool(
    inputs: jax.Array,  # [B, *spatial, C]
    *,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
) -> jax.Array:
    """The average of each window, [B, *windows, C], added up in float32 at least.

    Arguments are those of `max_pool`, but padding holds zeros, which count.
    """
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    total = _reduce_windows(wide, jax.lax.add, 0.0, window, strides, padding)
    return (total / math.prod(window)).astype(inputs.dtype)


def _reduce_windows(
    inputs: jax.Array, reduce: Callable, initial: float, window: Any, strides: Any, padding: Any
) -> jax.Array:
    return jax.lax.reduce_window(
        inputs,
        np.array(initial, inputs.dtype),  # a constant: with a traced value, no gradient
        reduce,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *strides, 1),
        padding=[(0, 0), *((amount, amount) for amount in padding), (0, 0)],
    )


# On a CPU XLA visits window after window. Here pooling goes position by position, which is faster
# by a factor of two to five: the first positions of all windows, then the second ones. Likewise the
# gradient of a maximum, for which XLA on a GPU adds to memory one by one: each position of the
# input asks the few windows that it lies in whether it was their maximum, in a quarter to a tenth
# of the time on a CPU and in almost half of it on a GPU.

_MANY_POSITIONS = 100  # of a window, that a program is not made longer for
_MANY_CHANNELS = 16  # fewest channels that fill a vector register

_max_definition = max_pool  # what the name stands for below is fast


@dataclass(frozen=True)
class _Windows:
    """Places of the windows; one number for each spatial axis."""

    spatial: tuple[int, ...]
    """Positions of the input."""
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]

    def slices(self, inputs: jax.Array, fill: float) -> list[jax.Array]:
        return slices_of_windows(inputs, self.window, self.strides, self.padding, fill)

    def reduce(self, inputs: jax.Array, reduce: Callable, initial: float) -> jax.Array:
        """Reduces each window of [B, *spatial, C] to a number, [B, *windows, C]."""

        def by_window(inputs: jax.Array) -> jax.Array:
            return _reduce_windows(inputs, reduce, initial, self.window, self.strides, self.padding)

        def by_position(inputs: jax.Array) -> jax.Array:
            return functools.reduce(reduce, self.slices(inputs, initial))

        if math.prod(self.window) > _MANY_POSITIONS or inputs.shape[-1] < _MANY_CHANNELS:
            return by_window(inputs)
        return by_platform(by_window, cpu=by_position)(inputs)

    def first_maximum(self, inputs: jax.Array) -> jax.Array:
        """The number of the first maximum in each window of [B, *spatial, C], [B, *windows, C].

        Positions of a window count from 0, the last axis first. They are compared with each other
        and not with a maximum from elsewhere, since a compiler that computes the inputs anew may
        round them otherwise.
        """
        best, *others = self.slices(inputs, -jnp.inf)
        first = jnp.zeros(best.shape, jnp.int32)
        for number, values in enumerate(others, start=1):
            first = jnp.where(values > best, number, first)
            best = jnp.maximum(values, best)
        return first

    def spread(self, gradient: jax.Array, chosen: jax.Array | None) -> jax.Array:
        """Adds up for each position of the input the gradients of the windows that it lies in.

        Position s q + r of an axis, for a stride s, is number r in window q, number s + r in window
        q - 1, and so on: all positions of one q ask the same few windows, and r is an axis of its
        own. Five positions with windows of three at stride two, for example, whose maxima are
        number 2 of window 0 and number 0 of window 1, both at position 2:

            position               0, 1    2, 3    4, (5)
            q                      0       1       2
            number in window q     0, 1    0, 1    0, 1      (`_numbers` of 0 steps back)
            number in window q-1   2, -    2, -    2, -      (`_numbers` of 1 step back)
            from window q          0, 0    g₁, 0   0, 0      where its maximum has this number
            from window q-1        0, 0    g₀, 0   0, 0
            sum                    0, 0    g₀+g₁, 0   0      beyond the last position is cut off

        Args:
            gradient: [B, *windows, C].
            chosen: the number of the one position in each window that gets its gradient, as
                `first_maximum` counts; None gives it to all of them.
        """
        reaches = [
            -(-size // stride) for size, stride in zip(self.window, self.strides, strict=True)
        ]
        counts = [
            -(-(size + 2 * added) // stride)
            for size, added, stride in zip(self.spatial, self.padding, self.strides, strict=True)
        ]
        width = [
            (reach - 1, count - size)
            for reach, count, size in zip(reaches, counts, gradient.shape[1:-1], strict=True)
        ]
        width = [(0, 0), *width, (0, 0)]
        gradient = jnp.pad(gradient, width)
        chosen = None if chosen is None else jnp.pad(chosen, width, constant_values=-1)
        total = jnp.zeros((), gradient.dtype)
        for back in np.ndindex(*reaches):
            window = tuple(
                slice(reach - 1 - steps, reach - 1 - steps + count)
                for steps, reach, count in zip(back, reaches, counts, strict=True)
            )
            numbers = self._numbers(back)
            from_window = self._apart(gradient[:, *window])
            hit = numbers >= 0 if chosen is None else self._apart(chosen[:, *window]) == numbers
            total += jnp.where(hit, from_window, 0)
        padded = total.reshape(
            len(total),
            *(q * s for q, s in zip(counts, self.strides, strict=True)),
            gradient.shape[-1],
        )
        inside = (slice(p, p + n) for p, n in zip(self.padding, self.spatial, strict=True))
        return padded[:, *inside]

    def _numbers(self, back: Sequence[int]) -> np.ndarray:
        """The numbers, in the window so many steps back, of positions r of each axis; -2 beyond."""
        numbers = np.full(self.strides, -2, np.int32)
        for r in np.ndindex(*self.strides):
            place = np.add(r, np.multiply(back, self.strides))
            if np.all(place < self.window):
                numbers[r] = np.ravel_multi_index(tuple(place), self.window)
        return np.expand_dims(numbers, [0, *range(1, 2 * len(back), 2), 2 * len(back) + 1])

    def _apart(self, array: jax.Array) -> jax.Array:
        """[B, *counts, C] with the axis r after each spatial one, along which nothing changes."""
        return jnp.expand_dims(array, range(2, 2 * len(self.window) + 1, 2))


def _fast_max(inputs: jax.Array, **settings: Any) -> jax.Array:
    return _Windows(inputs.shape[1:-1], **settings).reduce(inputs, jax.lax.max, -jnp.inf)


def _max_backward(saved: Any, gradient: jax.Array, **settings: Any) -> tuple[jax.Array]:
    (inputs,) = saved
    windows = _Windows(inputs.shape[1:-1], **settings)

    def by_position(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        return windows.spread(gradient, windows.first_maximum(inputs))

    def by_window(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(partial(_max_definition, **settings), inputs)[1](gradient)[0]

    return (by_platform(by_window, cpu=by_position, cuda=by_position)(inputs, gradient),)


def _fast_avg(inputs: jax.Array, *, window: tuple[int, ...], **settings: Any) -> jax.Array:
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    total = _Windows(inputs.shape[1:-1], window, **settings).reduce(wide, jax.lax.add, 0.0)
    return (total / math.prod(window)).astype(inputs.dtype)


def _avg_backward(saved: Any, gradient: jax.Array, **settings: Any) -> tuple[jax.Array]:
    (inputs,) = saved  # of which shape and dtype are used
    wide = gradient.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    windows = _Windows(inputs.shape[1:-1], **settings)
    return (windows.spread(wide / math.prod(windows.window), None).astype(inputs.dtype),)


max_pool = accelerated(max_pool, fast=_fast_max, backward=_max_backward)
avg_pool = accelerated(avg_pool, fast=_fast_avg, backward=_avg_backward)
