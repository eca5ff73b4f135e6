"""Forms of a two-dimensional convolution that are faster on a CPU than XLA's, forward or backward.

XLA's convolution on a CPU packs its operands for large images with many channels. Where there is
little to pack it is slow, by a factor of two to twenty: few channels, an image no larger than the
window, windows of one position. There the same sums are written as matrix products, as scaled
copies, or as a convolution with more channels. Windows of 3×3 with many channels take less than
half the products (`winograd.py`). Other platforms convolve.

Legend: B batch, H height, W width, C channels; I input, O output channels; k a position of the
window.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.windows import slices_of_windows
from flaxdl.ops.winograd import convolve_tiles

_FEW_POSITIONS = 25  # of a window: as many copies are still cheaper than a convolution
_MANY_OUTPUTS = 16  # that a copy is scaled to at once
_FEW_CHANNELS = 8
_COLORS = 3  # with so few, the gradient of a product is faster than a convolution of the gradient
_FEW_WEIGHTS = 256  # I O, up to which two windows are taken at once
_FEWEST_WEIGHTS = 96  # I O, below which four are, forward and in the gradient of the kernel
_MANY_CHANNELS = 64  # products of tiles save more than the sums cost; half as many in gradients
_LARGE_IMAGE = 36  # positions, which are worth spreading a kernel for
_MOST_VALUES = 2**21  # of an image: with their gradient tiles take 13 times its memory


@dataclass(frozen=True)
class Window:
    """How a window slides over images."""

    sizes: tuple[int, ...]
    """Positions along height and width."""
    strides: tuple[int, ...]
    padding: tuple[int, ...]

    def convolve(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        """XLA's convolution of [B, H, W, I] with [*sizes, I, O]."""
        return jax.lax.conv_general_dilated(
            inputs,
            kernel,
            window_strides=self.strides,
            padding=[(amount, amount) for amount in self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def holds(self, inputs: jax.Array) -> bool:
        """Whether images are no larger than the window, which is larger than one position."""
        fits = zip(inputs.shape[1:3], self.sizes, strict=True)
        return math.prod(self.sizes) > 1 and all(size <= reach for size, reach in fits)

    def has_few_positions(self) -> bool:
        """Whether copies of the images, one for each position, are cheaper than a convolution."""
        return 1 < math.prod(self.sizes) <= _FEW_POSITIONS

    def slices(self, inputs: jax.Array) -> list[jax.Array]:
        """What each position k of the window sees, [B, H, W, I] of the outputs' size."""
        return slices_of_windows(inputs, self.sizes, self.strides, self.padding)

    def as_copies(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution of a single channel: copies of the image, each scaled and moved."""
        weights = kernel.reshape(-1, kernel.shape[-1])  # [k, O]
        first, *others = zip(self.slices(inputs), weights, strict=True)
        total = first[0] * first[1]
        for image, weight in others:
            total += image * weight
        return total

    def as_product(self, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution as one matrix product over positions and channels of the window."""
        patches = jnp.concatenate(self.slices(inputs), axis=-1)  # [B, H, W, k I]
        return patches @ kernel.reshape(-1, kernel.shape[-1])

    def side_by_side(self, inputs: jax.Array, kernel: jax.Array, count: int) -> jax.Array:
        """The convolution with `count` windows side by side as one, which has `count` O outputs."""
        size, stride, padding = self.sizes[1], self.strides[1], self.padding[1]
        width = (inputs.shape[2] + 2 * padding - size) // stride + 1  # of the outputs
        steps = math.ceil(width / count)
        moved = [
            jnp.pad(kernel, [(0, 0), (i * stride, (count - 1 - i) * stride), (0, 0), (0, 0)])
            for i in range(count)
        ]
        right = (steps * count - 1) * stride + size - inputs.shape[2] - padding
        outputs = jax.lax.conv_general_dilated(
            inputs,
            jnp.concatenate(moved, axis=-1),
            window_strides=(self.strides[0], count * stride),
            padding=[(self.padding[0], self.padding[0]), (padding, right)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # [B, H, steps, count O]
        outputs = outputs.reshape(*outputs.shape[:2], steps * count, kernel.shape[-1])
        return outputs[:, :, :width]


def convolve(window: Window, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [B, H, W, I] with [*sizes, I, O], in the form that suits sizes and platform."""
    return _convolve(window, inputs, kernel)


def _choose(window: Window, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    channels, outputs = kernel.shape[2:]
    if channels == 1 and outputs >= _MANY_OUTPUTS and window.has_few_positions():
        form = window.as_copies
    elif window.holds(inputs):
        form = window.as_product
    elif count := _windows_at_once(window, kernel):
        form = partial(window.side_by_side, count=count)
    elif _suits_tiles(window, inputs, kernel) and min(channels, outputs) >= _MANY_CHANNELS:
        form = convolve_tiles
    else:
        return window.convolve(inputs, kernel)
    return jax.lax.platform_dependent(inputs, kernel, cpu=form, default=window.convolve)


def _windows_at_once(window: Window, kernel: jax.Array) -> int:
    """How many windows to take side by side for their few channels; 0 for one."""
    weights = math.prod(kernel.shape[2:])
    if window.strides[1] >= window.sizes[1] or weights > _FEW_WEIGHTS:
        return 0  # windows that do not overlap would only be filled up with zeros
    return 4 if weights < _FEWEST_WEIGHTS else 2


def _suits_tiles(window: Window, inputs: jax.Array, kernel: jax.Array) -> bool:
    """Whether `convolve_tiles` convolves in this way, and images are worth it.

    The size of the batch does not count: in an exported program it is open.
    """
    is_3x3 = (window.sizes, window.strides, window.padding) == ((3, 3), (1, 1), (1, 1))
    is_exact = inputs.dtype.itemsize >= 4  # in 16 bits the sums of tiles would be rounded
    positions = math.prod(inputs.shape[1:3])
    fits = positions >= _LARGE_IMAGE and positions * max(kernel.shape[2:]) <= _MOST_VALUES
    return is_3x3 and is_exact and fits


def _forward(window: Window, inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _convolve(window, inputs, kernel), (inputs, kernel)


def _backward(window: Window, saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    if window.sizes == (1, 1):
        form = _gradients_of_one_position
    elif window.holds(inputs):
        form = _gradients_through_product
    elif _windows_at_once(window, kernel):
        form = _gradients_side_by_side
    elif kernel.shape[2] <= _FEW_CHANNELS:
        form = _gradients_through_product
    elif _suits_tiles(window, inputs, kernel) and 2 * min(kernel.shape[2:]) >= _MANY_CHANNELS:
        form = _gradients_of_tiles
    else:
        form = _gradients_of_convolution
    forms = {"cpu": form, "default": _gradients_of_convolution}
    return jax.lax.platform_dependent(
        inputs, kernel, gradient, **{name: partial(form, window) for name, form in forms.items()}
    )


_convolve: Any = jax.custom_vjp(_choose, nondiff_argnums=(0,))
_convolve.defvjp(_forward, _backward)

Gradients = tuple[jax.Array, jax.Array]
"""Of the inputs [B, H, W, I] and of the kernel [*sizes, I, O]."""


def _gradients_of_convolution(
    window: Window, inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Gradients:
    return jax.vjp(window.convolve, inputs, kernel)[1](gradient)


def _gradients_through_product(
    window: Window, inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Gradients:
    """The gradient of the inputs is that of the product; the kernel's is a good convolution."""
    (of_inputs,) = jax.vjp(lambda x: window.as_product(x, kernel), inputs)[1](gradient)
    (of_kernel,) = jax.vjp(lambda k: window.convolve(inputs, k), kernel)[1](gradient)
    return of_inputs, of_kernel


def _gradients_side_by_side(
    window: Window, inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Gradients:
    """That of the inputs may be a convolution of the gradient with the window turned around."""
    can_turn = window.strides == (1, 1) and all(
        padding < size for padding, size in zip(window.padding, window.sizes, strict=True)
    )
    if can_turn and kernel.shape[2] > _COLORS:
        padding = tuple(size - 1 - p for size, p in zip(window.sizes, window.padding, strict=True))
        turned = kernel[::-1, ::-1].swapaxes(2, 3)  # [*sizes, O, I]
        of_inputs = _choose(Window(window.sizes, (1, 1), padding), gradient, turned)
    else:
        form = window.as_product if kernel.shape[2] <= _FEW_CHANNELS else window.convolve
        (of_inputs,) = jax.vjp(lambda x: form(x, kernel), inputs)[1](gradient)
    form = window.convolve
    if math.prod(kernel.shape[2:]) < _FEWEST_WEIGHTS:
        form = partial(window.side_by_side, count=_windows_at_once(window, kernel))
    (of_kernel,) = jax.vjp(lambda k: form(inputs, k), kernel)[1](gradient)
    return of_inputs, of_kernel


def _gradients_of_tiles(
    window: Window, inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Gradients:
    return jax.vjp(convolve_tiles, inputs, kernel)[1](gradient)


def _gradients_of_one_position(
    window: Window, inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Gradients:
    """Those of a product over all positions of all images."""
    seen, spread = jax.vjp(lambda x: window.slices(x)[0], inputs)
    rows = seen.reshape(-1, seen.shape[-1])  # [B H W, I]
    of_rows = gradient.reshape(-1, gradient.shape[-1])  # [B H W, O]
    of_seen = (of_rows @ kernel[0, 0].T).reshape(seen.shape)
    return spread(of_seen)[0], (rows.T @ of_rows)[None, None]
