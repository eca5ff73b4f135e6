"""Convolution over one, two or three axes, with dilation and groups.

Legend: B batch, *spatial one to three axes (H height, W width), C channels; I input, O output
channels; k a position of the window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.ops.dispatch import accelerated, by_platform
from flaxdl.ops.windows import slices_of_windows
from flaxdl.ops.winograd import convolve_tiles


def convolve(
    inputs: jax.Array,  # [B, *spatial, I]
    kernel: jax.Array,  # [*window, I / groups, O]
    *,
    strides: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> jax.Array:
    """Multiplies each window with the kernel and adds up over its positions and channels.

    outputs[b, p, o] = Σₖ Σᵢ inputs[b, strides p + dilation k − padding, i] kernel[k, i, o]

    Inputs beyond the border are zero. With groups, i counts the channels of the group of o.

    Args:
        inputs: [B, *spatial, I].
        kernel: [*window, I / groups, O], in the dtype of the inputs.
        strides: steps from window to window; a number for each axis, here and below.
        padding: zeros added on both sides.
        dilation: distances between neighbouring positions of a window.
        groups: parts of the channels; each part of the outputs sees one part of the inputs.

    Returns:
        [B, *spatial, O], in the dtype of the inputs.
    """
    axes = "DHW"[-len(strides) :]
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=strides,
        padding=[(amount, amount) for amount in padding],
        rhs_dilation=dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
    )


# XLA's convolution on a CPU packs its operands for large images with many channels. Where there is
# little to pack it is slow, by a factor of two to twenty: few channels, an image no larger than the
# window, windows of one position. There the same sums are written as matrix products, as scaled
# copies, or as a convolution with more channels. Windows of 3×3 with many channels take less than
# half the products (`winograd.py`). Other platforms convolve.

_FEW_POSITIONS = 25  # of a window: as many copies are still cheaper than a convolution
_MANY_OUTPUTS = 16  # fewest output channels for copies
_FEW_CHANNELS = 8
_COLORS = 3  # with so few, the gradient of a product is faster than a convolution of the gradient
_FEW_WEIGHTS = 256  # I O, up to which two windows are taken together
_FEWEST_WEIGHTS = 96  # I O, below which four are, forward and in the gradient of the kernel
_MANY_CHANNELS = 64  # products of tiles save more than the sums cost; half as many in gradients
_LARGE_IMAGE = 36  # positions, which are worth spreading a kernel for
_MOST_VALUES = 2**21  # of an image: with their gradient tiles take 13 times its memory

Gradients = tuple[jax.Array, jax.Array]
"""Of the inputs [B, *spatial, I] and of the kernel [*window, I / groups, O]."""

_definition = convolve  # what the name stands for below is fast


@dataclass(frozen=True)
class _Window:
    """A window that slides over images, with the lowerings of its convolution and gradients."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    def xla(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        settings = {"padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return _definition(x, kernel, strides=self.strides, **settings)

    def copies(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution of a single channel: copies of the image, each scaled and moved."""
        # Not rows of a reshaped kernel, which XLA's simplifier (jaxlib 0.10.2) gets wrong in second
        # derivatives under `jax.vmap`.
        weights = [kernel[*place, 0] for place in np.ndindex(*self.sizes)]  # k times [O]
        first, *others = zip(self.slices(x), weights, strict=True)
        total = first[0] * first[1]
        for image, weight in others:
            total += image * weight
        return total

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution as one matrix product over positions and channels of the window."""
        patches = jnp.concatenate(self.slices(x), axis=-1)  # [B, H, W, k I]
        return patches @ kernel.reshape(-1, kernel.shape[-1])

    def side_by_side(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution with `count` windows side by side as one, which has `count` O outputs."""
        count = self.windows_at_once(x, kernel)
        size, stride, padding = self.sizes[1], self.strides[1], self.padding[1]
        width = (x.shape[2] + 2 * padding - size) // stride + 1  # of the outputs
        steps = math.ceil(width / count)
        moved = [
            jnp.pad(kernel, [(0, 0), (i * stride, (count - 1 - i) * stride), (0, 0), (0, 0)])
            for i in range(count)
        ]
        right = (steps * count - 1) * stride + size - x.shape[2] - padding
        outputs = jax.lax.conv_general_dilated(
            x,
            jnp.concatenate(moved, axis=-1),
            window_strides=(self.strides[0], count * stride),
            padding=[(self.padding[0], self.padding[0]), (padding, right)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # [B, H, steps, count O]
        outputs = outputs.reshape(*outputs.shape[:2], steps * count, kernel.shape[-1])
        return outputs[:, :, :width]

    def tiles(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve_tiles(x, kernel)

    def slices(self, x: jax.Array) -> list[jax.Array]:
        """For each position k of the window the inputs under it, [B, H, W, I] as the outputs."""
        return slices_of_windows(x, self.sizes, self.strides, self.padding)

    def d_xla(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        return jax.vjp(self.xla, x, kernel)[1](gradient)

    def d_product(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        """The gradient of the inputs is that of the product; the kernel's is a good convolution."""
        (d_inputs,) = jax.vjp(lambda x: self.product(x, kernel), x)[1](gradient)
        (d_kernel,) = jax.vjp(lambda k: self.xla(x, k), kernel)[1](gradient)
        return d_inputs, d_kernel

    def d_side_by_side(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        """That of the inputs may be a convolution of the gradient with the window turned around."""
        can_turn = self.strides == (1, 1) and all(
            padding < size for padding, size in zip(self.padding, self.sizes, strict=True)
        )
        if can_turn and kernel.shape[2] > _COLORS:
            padding = tuple(size - 1 - p for size, p in zip(self.sizes, self.padding, strict=True))
            turned = kernel[::-1, ::-1].swapaxes(2, 3)  # [*sizes, O, I]
            d_inputs = _fast(gradient, turned, strides=(1, 1), padding=padding)
        else:
            lowering = self.product if kernel.shape[2] <= _FEW_CHANNELS else self.xla
            (d_inputs,) = jax.vjp(lambda x: lowering(x, kernel), x)[1](gradient)
        is_small = math.prod(kernel.shape[2:]) < _FEWEST_WEIGHTS
        lowering = self.side_by_side if is_small else self.xla
        (d_kernel,) = jax.vjp(lambda k: lowering(x, k), kernel)[1](gradient)
        return d_inputs, d_kernel

    def d_tiles(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        return jax.vjp(convolve_tiles, x, kernel)[1](gradient)

    def d_one_position(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        """Those of a product over all positions of all images."""
        seen, spread = jax.vjp(lambda x: self.slices(x)[0], x)
        rows = seen.reshape(-1, seen.shape[-1])  # [B H W, I]
        d_rows = gradient.reshape(-1, gradient.shape[-1])  # [B H W, O]
        d_seen = (d_rows @ kernel[0, 0].T).reshape(seen.shape)
        return spread(d_seen)[0], (rows.T @ d_rows)[None, None]

    # Conditions do not count the batch, whose size is open in an exported program.

    def is_special(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns whether there is no lowering but XLA's own."""
        return x.ndim != 4 or self.groups > 1 or self.dilation != (1, 1)

    def has_one_position(self, x: jax.Array, kernel: jax.Array) -> bool:
        return self.sizes == (1, 1)

    def suits_copies(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns whether scaled copies, one per position, are cheaper than a convolution."""
        channels, outputs = kernel.shape[2:]
        has_few_positions = 1 < math.prod(self.sizes) <= _FEW_POSITIONS
        return channels == 1 and outputs >= _MANY_OUTPUTS and has_few_positions

    def suits_copies_side_by_side(self, x: jax.Array, kernel: jax.Array) -> bool:
        is_larger = not self.holds(x, kernel)
        return self.suits_copies(x, kernel) and is_larger and self.windows_at_once(x, kernel) > 0

    def holds(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns whether images are no larger than the window, if that has several positions."""
        fits = zip(x.shape[1:3], self.sizes, strict=True)
        return math.prod(self.sizes) > 1 and all(size <= reach for size, reach in fits)

    def windows_at_once(self, x: jax.Array, kernel: jax.Array) -> int:
        """The number of windows to take side by side for their few channels; 0 for one."""
        weights = math.prod(kernel.shape[2:])
        if self.strides[1] >= self.sizes[1] or weights > _FEW_WEIGHTS:
            return 0  # windows that do not overlap would only be filled up with zeros
        return 4 if weights < _FEWEST_WEIGHTS else 2

    def has_few_channels(self, x: jax.Array, kernel: jax.Array) -> bool:
        return kernel.shape[2] <= _FEW_CHANNELS

    def suits_tiles(self, x: jax.Array, kernel: jax.Array) -> bool:
        return self.suits_tile_gradients(x, kernel) and min(kernel.shape[2:]) >= _MANY_CHANNELS

    def suits_tile_gradients(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns whether `convolve_tiles` applies, and images are large enough to gain."""
        is_3x3 = (self.sizes, self.strides, self.padding) == ((3, 3), (1, 1), (1, 1))
        is_exact = x.dtype.itemsize >= 4  # in 16 bits the sums of tiles would be rounded
        positions = math.prod(x.shape[1:3])
        fits = positions >= _LARGE_IMAGE and positions * max(kernel.shape[2:]) <= _MOST_VALUES
        return is_3x3 and is_exact and fits and 2 * min(kernel.shape[2:]) >= _MANY_CHANNELS


# On a CPU, the first row whose condition holds gives the lowerings of outputs and gradients.
_LOWERINGS: tuple[tuple[Callable, Callable, Callable], ...] = (
    (_Window.is_special, _Window.xla, _Window.d_xla),
    (_Window.has_one_position, _Window.xla, _Window.d_one_position),
    (_Window.suits_copies_side_by_side, _Window.copies, _Window.d_side_by_side),
    (_Window.suits_copies, _Window.copies, _Window.d_product),
    (_Window.holds, _Window.product, _Window.d_product),
    (_Window.windows_at_once, _Window.side_by_side, _Window.d_side_by_side),
    (_Window.has_few_channels, _Window.xla, _Window.d_product),
    (_Window.suits_tiles, _Window.tiles, _Window.d_tiles),
    (_Window.suits_tile_gradients, _Window.xla, _Window.d_tiles),
    (lambda *_: True, _Window.xla, _Window.d_xla),
)


def _lower(column: int, default: Callable, *arrays: jax.Array, **settings: Any) -> Any:
    window = _Window(arrays[1].shape[:-2], **settings)
    chosen = next(row for row in _LOWERINGS if row[0](window, *arrays[:2]))[column]
    if chosen is default:
        return default(window, *arrays)
    return by_platform(partial(default, window), cpu=partial(chosen, window))(*arrays)


_fast = partial(_lower, 1, _Window.xla)


def _backward(saved: Gradients, gradient: jax.Array, **settings: Any) -> Gradients:
    return _lower(2, _Window.d_xla, *saved, gradient, **settings)


convolve = accelerated(convolve, fast=_fast, backward=_backward)
