"""Max pooling and average pooling over one to three spatial axes.

Legend: B batch, C channels, `*spatial` sizes of one to three spatial axes, `*windows` numbers of
windows along them.
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

from flaxdl.ops import thresholds
from flaxdl.ops.dispatch import accelerated, by_platform
from flaxdl.ops.windows import slices_of_windows


def max_pool(
    inputs: jax.Array,  # [B, *spatial, C]
    *,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
) -> jax.Array:
    """Returns the maximum of each window, [B, *windows, C].

    If a maximum occurs several times in a window, its first occurrence gets the gradient.

    Args:
        inputs: [B, *spatial, C].
        window: size of the window along each spatial axis.
        strides: step between neighboring windows along each spatial axis.
        padding: number of positions, with value −∞, added on both sides of each spatial axis.
    """
    return _reduce_windows(inputs, jax.lax.max, -jnp.inf, window, strides, padding)


def avg_pool(
    inputs: jax.Array,  # [B, *spatial, C]
    *,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[int, ...],
) -> jax.Array:
    """Returns the average of each window, [B, *windows, C].

    Sums are accumulated in float32 or higher precision. The arguments are those of `max_pool`,
    except that padding has value zero and is included in the average.
    """
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    total = _reduce_windows(wide, jax.lax.add, 0.0, window, strides, padding)
    return (total / math.prod(window)).astype(inputs.dtype)


def _reduce_windows(
    inputs: jax.Array, reduce: Callable, initial: float, window: Any, strides: Any, padding: Any
) -> jax.Array:
    return jax.lax.reduce_window(
        inputs,
        np.array(initial, inputs.dtype),  # reduce_window has a gradient only for a constant
        reduce,
        window_dimensions=(1, *window, 1),
        window_strides=(1, *strides, 1),
        padding=[(0, 0), *((amount, amount) for amount in padding), (0, 0)],
    )


# On a CPU, XLA processes window after window. Pooling by position (the first positions of all
# windows, then the second, and so on) is two to five times as fast. The gradient of a maximum is
# also computed by position: the index of each input position is compared with that of the maximum
# in each of the few windows that contain it. This takes a quarter to a tenth of the time on a CPU,
# and almost half the time on a GPU, where XLA adds to memory one element at a time.


_max_definition = max_pool  # below, the name is bound to the fast version


@jax.custom_jvp
def _max_of_two(first: jax.Array, second: jax.Array) -> jax.Array:
    return jax.lax.max(first, second)


@_max_of_two.defjvp
def _max_of_two_jvp(values: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # JAX averages the tangents of equal values; second derivatives need that of the first, which
    # gets the gradient.
    return _max_of_two(*values), jnp.where(values[1] > values[0], tangents[1], tangents[0])


@dataclass(frozen=True)
class _Windows:
    """Geometry of the windows; one number per spatial axis."""

    spatial: tuple[int, ...]
    """Size of the input."""
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]

    def slices(self, inputs: jax.Array, fill: float) -> list[jax.Array]:
        return slices_of_windows(inputs, self.window, self.strides, self.padding, fill)

    def reduce(self, inputs: jax.Array, reduce: Callable, initial: float) -> jax.Array:
        """Reduces each window of [B, *spatial, C] to one value, [B, *windows, C]."""

        def by_window(inputs: jax.Array) -> jax.Array:
            return _reduce_windows(inputs, reduce, initial, self.window, self.strides, self.padding)

        def by_position(inputs: jax.Array) -> jax.Array:
            of_two = _max_of_two if reduce is jax.lax.max else reduce
            return functools.reduce(of_two, self.slices(inputs, initial))

        if (
            math.prod(self.window) > thresholds.POOLED_POSITIONS
            or inputs.shape[-1] < thresholds.POOLED_CHANNELS
        ):
            return by_window(inputs)
        return by_platform(by_window, cpu=by_position)(inputs)

    def first_maximum(self, inputs: jax.Array) -> jax.Array:
        """Returns the index of the first maximum in each window of [B, *spatial, C].

        Indices [B, *windows, C] count the positions of a window from 0, with the last axis varying
        fastest. Positions are compared with each other and not with a stored maximum, since a
        compiler that recomputes the inputs may round them differently.
        """
        best, *others = self.slices(inputs, -jnp.inf)
        first = jnp.zeros(best.shape, jnp.int32)
        for number, values in enumerate(others, start=1):
            first = jnp.where(values > best, number, first)
            best = jnp.maximum(values, best)
        return first

    def spread(self, gradient: jax.Array, chosen: jax.Array | None) -> jax.Array:
        """Sums, for each input position, the gradients of the windows that contain it.

        With a stride of s, position s q + r along an axis has index r in window q, index s + r in
        window q - 1, and so on. All positions with the same q are in the same few windows, so r
        becomes a separate axis. The following example has five positions and windows of size three
        with stride two. The maximum has index 2 in window 0 and index 0 in window 1, both times at
        position 2:

            position               0, 1    2, 3    4, (5)
            q                      0       1       2
            index in window q      0, 1    0, 1    0, 1      (`_numbers` of 0 steps back)
            index in window q-1    2, -    2, -    2, -      (`_numbers` of 1 step back)
            from window q          0, 0    g₁, 0   0, 0      where its maximum has this index
            from window q-1        0, 0    g₀, 0   0, 0
            sum                    0, 0    g₀+g₁, 0   0      beyond the last position is cut off

        Args:
            gradient: [B, *windows, C].
            chosen: index of the position in each window that gets the gradient, as returned by
                `first_maximum`; None if all positions get it.

        Returns:
            [B, *spatial, C].
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
        """Returns the index of each position r in the window `back` steps before; -2 if outside."""
        numbers = np.full(self.strides, -2, np.int32)
        for r in np.ndindex(*self.strides):
            place = np.add(r, np.multiply(back, self.strides))
            if np.all(place < self.window):
                numbers[r] = np.ravel_multi_index(tuple(place), self.window)
        return np.expand_dims(numbers, [0, *range(1, 2 * len(back), 2), 2 * len(back) + 1])

    def _apart(self, array: jax.Array) -> jax.Array:
        """Inserts an axis r of size 1 after each spatial axis of [B, *counts, C]."""
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
    (inputs,) = saved  # only for its shape and dtype
    wide = gradient.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    windows = _Windows(inputs.shape[1:-1], **settings)
    return (windows.spread(wide / math.prod(windows.window), None).astype(inputs.dtype),)


max_pool = accelerated(max_pool, fast=_fast_max, backward=_max_backward)
avg_pool = accelerated(avg_pool, fast=_fast_avg, backward=_avg_backward)
