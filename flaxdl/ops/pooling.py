"""The windows that pooling slides over one to three spatial axes, forward and backward.

On a CPU XLA visits window after window. Here pooling goes position by position, which is faster by
a factor of two to five: the first positions of all windows, then the second ones. Likewise the
gradient of a maximum, for which XLA on a GPU adds to memory one by one: each position of the input
asks the few windows that it lies in whether it was their maximum, in a quarter to a tenth of the
time on a CPU and in almost half of it on a GPU.

Legend: B batch, *spatial one to three axes, C channels; *windows as many positions along each.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.errors import UserError
from flaxdl.ops.windows import check_window_fits, per_axis, slices_of_windows

Sizes = int | Sequence[int]

_MANY_POSITIONS = 100  # of a window, that a program is not made longer for
_MANY_CHANNELS = 16  # that a processor computes with at once


@dataclass(frozen=True)
class Windows:
    """Where the windows lie; one number for each spatial axis."""

    spatial: tuple[int, ...]
    """Positions of the input."""
    sizes: tuple[int, ...]
    """Positions in a window."""
    strides: tuple[int, ...]
    """Steps from window to window."""
    padding: tuple[int, ...]
    """Positions added on both sides."""

    @classmethod
    def of(cls, inputs: jax.Array, sizes: Sizes, strides: Sizes | None, padding: Sizes) -> Self:
        """The windows over inputs [B, *spatial, C].

        Raises:
            UserError: if the inputs, once padded, are smaller than the window.
        """
        dimensions = inputs.ndim - 2
        window = per_axis("window", sizes, dimensions)
        stride = window if strides is None else per_axis("stride", strides, dimensions)
        added = per_axis("padding", padding, dimensions)
        if any(2 * amount > size for amount, size in zip(added, window, strict=True)):
            raise UserError(f"padding must be at most half the window {window}, got {added}")
        check_window_fits("inputs", inputs, window, added)
        return cls(inputs.shape[1:-1], window, stride, added)

    def reduce(self, inputs: jax.Array, reduce: Callable, initial: float) -> jax.Array:
        """Reduces each window of [B, *spatial, C] to a number, [B, *windows, C]."""

        def by_position(inputs: jax.Array) -> jax.Array:
            return functools.reduce(reduce, self._slices(inputs, initial))

        by_window = partial(self.reduce_by_window, reduce=reduce, initial=initial)
        if math.prod(self.sizes) > _MANY_POSITIONS or inputs.shape[-1] < _MANY_CHANNELS:
            return by_window(inputs)
        return jax.lax.platform_dependent(inputs, cpu=by_position, default=by_window)

    def reduce_by_window(self, inputs: jax.Array, reduce: Callable, initial: float) -> jax.Array:
        """The same as XLA has it."""
        return jax.lax.reduce_window(
            inputs,
            np.array(initial, inputs.dtype),  # a constant: with a traced value, no gradient
            reduce,
            window_dimensions=(1, *self.sizes, 1),
            window_strides=(1, *self.strides, 1),
            padding=[(0, 0), *((amount, amount) for amount in self.padding), (0, 0)],
        )

    def _slices(self, inputs: jax.Array, fill: float) -> list[jax.Array]:
        return slices_of_windows(inputs, self.sizes, self.strides, self.padding, fill)

    def first_maximum(self, inputs: jax.Array) -> jax.Array:
        """The number of the first maximum in each window of [B, *spatial, C], [B, *windows, C].

        Positions of a window count from 0, the last axis first. They are compared with each other
        and not with a maximum from elsewhere, since a compiler that computes the inputs anew may
        round them otherwise.
        """
        best, *others = self._slices(inputs, -jnp.inf)
        first = jnp.zeros(best.shape, jnp.int32)
        for number, values in enumerate(others, start=1):
            first = jnp.where(values > best, number, first)
            best = jnp.maximum(values, best)
        return first

    def spread(self, gradient: jax.Array, chosen: jax.Array | None) -> jax.Array:
        """Adds up for each position of the input the gradients of the windows that it lies in.

        Args:
            gradient: [B, *windows, C].
            chosen: the number of the one position in each window that gets its gradient, as
                `first_maximum` counts; None gives it to all of them.
        """
        # Position s q + r of an axis lies r behind the start of window q, s + r behind that of
        # window q - 1, and so on: all positions of one q ask the same few windows.
        reaches = [
            -(-size // stride) for size, stride in zip(self.sizes, self.strides, strict=True)
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
            share = self._apart(gradient[:, *window])
            hit = numbers >= 0 if chosen is None else self._apart(chosen[:, *window]) == numbers
            total += jnp.where(hit, share, 0)
        padded = total.reshape(
            len(total),
            *(q * s for q, s in zip(counts, self.strides, strict=True)),
            gradient.shape[-1],
        )
        inside = (slice(p, p + n) for p, n in zip(self.padding, self.spatial, strict=True))
        return padded[:, *inside]

    def _numbers(self, back: Sequence[int]) -> np.ndarray:
        """The numbers, in the window so many steps back, of positions r of each axis; -2 beyond."""
        places = [
            np.arange(stride) + steps * stride
            for steps, stride in zip(back, self.strides, strict=True)
        ]
        numbers = np.full(self.strides, -2, np.int32)
        for r, place in zip(
            itertools.product(*map(range, self.strides)), itertools.product(*places), strict=True
        ):
            if all(p < size for p, size in zip(place, self.sizes, strict=True)):
                numbers[r] = np.ravel_multi_index(place, self.sizes)
        return np.expand_dims(numbers, [0, *range(1, 2 * len(back), 2), 2 * len(back) + 1])

    def _apart(self, array: jax.Array) -> jax.Array:
        """[B, *counts, C] with an axis behind each spatial one, along which nothing changes."""
        return jnp.expand_dims(array, range(2, 2 * len(self.sizes) + 1, 2))


def max_of_windows(windows: Windows, inputs: jax.Array) -> jax.Array:
    """The maximum of each window of [B, *spatial, C]; the first of equal ones gets the gradient."""
    return _max(windows, inputs)


def sum_of_windows(windows: Windows, inputs: jax.Array) -> jax.Array:
    """The sum of each window of [B, *spatial, C]."""
    return _sum(windows, inputs)


def _max_alone(windows: Windows, inputs: jax.Array) -> jax.Array:
    return windows.reduce(inputs, jax.lax.max, -jnp.inf)


def _max_backward(windows: Windows, inputs: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def by_position(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        return windows.spread(gradient, windows.first_maximum(inputs))

    def by_window(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        form = partial(windows.reduce_by_window, reduce=jax.lax.max, initial=-jnp.inf)
        return jax.vjp(form, inputs)[1](gradient)[0]

    form = jax.lax.platform_dependent(
        inputs, gradient, cpu=by_position, cuda=by_position, default=by_window
    )
    return (form,)


_max: Any = jax.custom_vjp(_max_alone, nondiff_argnums=(0,))
_max.defvjp(lambda windows, inputs: (_max(windows, inputs), inputs), _max_backward)

_sum: Any = jax.custom_vjp(
    lambda windows, inputs: windows.reduce(inputs, jax.lax.add, 0.0), nondiff_argnums=(0,)
)
_sum.defvjp(
    lambda windows, inputs: (_sum(windows, inputs), None),
    lambda windows, _, gradient: (windows.spread(gradient, None),),
)
