"""Convolution over one, two or three axes, with dilation and groups.

Legend: B batch, *spatial one to three axes (H height, W width), C channels; I input, O output
channels; k position in the window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.ops import thresholds
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
    """Convolves the inputs with a kernel (cross-correlation, as in PyTorch).

    outputs[b, p, o] = Σₖ Σᵢ inputs[b, strides p + dilation k − padding, i] kernel[k, i, o]

    Inputs outside the borders are zero. With groups, i runs over the input channels of the group
    that contains o.

    Args:
        inputs: [B, *spatial, I].
        kernel: [*window, I / groups, O], in the dtype of the inputs.
        strides: step between neighboring windows along each spatial axis.
        padding: number of zeros added on both sides of each spatial axis.
        dilation: distance between neighboring positions in a window along each spatial axis.
        groups: number of channel groups; each group of output channels depends only on the
            corresponding group of input channels.

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


# XLA's convolution on a CPU packs its operands, which pays off for large images with many channels.
# It is two to twenty times slower than necessary for few channels, for images no larger than the
# window, and for windows of one position. In these cases the same sums are computed as matrix
# products, as scaled copies, or as a convolution with more channels. 3×3 windows with many channels
# are computed by Winograd's algorithm, with less than half the multiplications (`winograd.py`).
# Other platforms use XLA's convolution.


Gradients = tuple[jax.Array, jax.Array]
"""Gradients of the inputs [B, *spatial, I] and of the kernel [*window, I / groups, O]."""

_definition = convolve  # below, the name is bound to the fast version


@dataclass(frozen=True)
class _Window:
    """Window of a convolution over images, with lowerings of the convolution and its gradients."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    def xla(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        settings = {"padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return _definition(x, kernel, strides=self.strides, **settings)

    def copies(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolves a single channel, as a sum of shifted and scaled copies of the image."""
        # The kernel is indexed instead of reshaped: for the rows of a reshaped kernel, XLA's
        # simplifier (jaxlib 0.10.2) computes wrong second derivatives under `jax.vmap`.
        weights = [kernel[*place, 0] for place in np.ndindex(*self.sizes)]  # k times [O]
        first, *others = zip(self.slices(x), weights, strict=True)
        total = first[0] * first[1]
        for image, weight in others:
            total += image * weight
        return total

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolves by one matrix product over positions and channels of the window (im2col)."""
        patches = jnp.concatenate(self.slices(x), axis=-1)  # [B, H, W, k I]
        return patches @ kernel.reshape(-1, kernel.shape[-1])

    def side_by_side(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolves with `count` adjacent windows merged into one that has `count` O outputs."""
        count = self.windows_at_once(x, kernel)
        size, stride, padding = self.sizes[1], self.strides[1], self.padding[1]
        width = (x.shape[2] + 2 * padding - size) // stride + 1  # width of the outputs
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
        """Returns one array [B, H, W, I] per position k: the inputs at k in all windows."""
        return slices_of_windows(x, self.sizes, self.strides, self.padding)

    def d_xla(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        return jax.vjp(self.xla, x, kernel)[1](gradient)

    def d_product(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        """Returns the gradients: `product` for the inputs, XLA's convolution for the kernel."""
        (d_inputs,) = jax.vjp(lambda x: self.product(x, kernel), x)[1](gradient)
        (d_kernel,) = jax.vjp(lambda k: self.xla(x, k), kernel)[1](gradient)
        return d_inputs, d_kernel

    def d_side_by_side(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        """Returns the gradients; convolves with the flipped kernel for the inputs, if possible."""
        can_turn = self.strides == (1, 1) and all(
            padding < size for padding, size in zip(self.padding, self.sizes, strict=True)
        )
        if can_turn and kernel.shape[2] > thresholds.COLORS:
            padding = tuple(size - 1 - p for size, p in zip(self.sizes, self.padding, strict=True))
            turned = kernel[::-1, ::-1].swapaxes(2, 3)  # [*sizes, O, I]
            d_inputs = _fast(gradient, turned, strides=(1, 1), padding=padding)
        else:
            lowering = self.product if kernel.shape[2] <= thresholds.FEW_CHANNELS else self.xla
            (d_inputs,) = jax.vjp(lambda x: lowering(x, kernel), x)[1](gradient)
        is_small = math.prod(kernel.shape[2:]) < thresholds.FOUR_WINDOWS_WEIGHTS
        lowering = self.side_by_side if is_small else self.xla
        (d_kernel,) = jax.vjp(lambda k: lowering(x, k), kernel)[1](gradient)
        return d_inputs, d_kernel

    def d_tiles(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        return jax.vjp(convolve_tiles, x, kernel)[1](gradient)

    def d_one_position(self, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> Gradients:
        """Returns the gradients of a 1×1 convolution, by matrix products over all positions."""
        seen, spread = jax.vjp(lambda x: self.slices(x)[0], x)
        rows = seen.reshape(-1, seen.shape[-1])  # [B H W, I]
        d_rows = gradient.reshape(-1, gradient.shape[-1])  # [B H W, O]
        d_seen = (d_rows @ kernel[0, 0].T).reshape(seen.shape)
        return spread(d_seen)[0], (rows.T @ d_rows)[None, None]

    # Conditions do not depend on the batch size, which is symbolic in exported programs.

    def is_special(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns True if only XLA's own lowering is available."""
        return x.ndim != 4 or self.groups > 1 or self.dilation != (1, 1)

    def has_one_position(self, x: jax.Array, kernel: jax.Array) -> bool:
        return self.sizes == (1, 1)

    def suits_copies(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns True if `copies` is faster than XLA's convolution."""
        channels, outputs = kernel.shape[2:]
        has_few_positions = 1 < math.prod(self.sizes) <= thresholds.COPIED_POSITIONS
        return channels == 1 and outputs >= thresholds.COPIED_OUTPUTS and has_few_positions

    def suits_copies_side_by_side(self, x: jax.Array, kernel: jax.Array) -> bool:
        is_larger = not self.holds(x, kernel)
        return self.suits_copies(x, kernel) and is_larger and self.windows_at_once(x, kernel) > 0

    def holds(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns True if the window has several positions and covers the whole image."""
        fits = zip(x.shape[1:3], self.sizes, strict=True)
        return math.prod(self.sizes) > 1 and all(size <= reach for size, reach in fits)

    def windows_at_once(self, x: jax.Array, kernel: jax.Array) -> int:
        """Returns the number of adjacent windows to merge; 0 for none."""
        weights = math.prod(kernel.shape[2:])
        if self.strides[1] >= self.sizes[1] or weights > thresholds.TWO_WINDOWS_WEIGHTS:
            return 0  # without overlap, merging would only add zeros
        return 4 if weights < thresholds.FOUR_WINDOWS_WEIGHTS else 2

    def has_few_channels(self, x: jax.Array, kernel: jax.Array) -> bool:
        return kernel.shape[2] <= thresholds.FEW_CHANNELS

    def suits_tiles(self, x: jax.Array, kernel: jax.Array) -> bool:
        return (
            self.suits_tile_gradients(x, kernel)
            and min(kernel.shape[2:]) >= thresholds.TILED_CHANNELS
        )

    def suits_tile_gradients(self, x: jax.Array, kernel: jax.Array) -> bool:
        """Returns True if `convolve_tiles` applies and its gradients are faster than XLA's."""
        is_3x3 = (self.sizes, self.strides, self.padding) == ((3, 3), (1, 1), (1, 1))
        is_exact = x.dtype.itemsize >= 4  # in 16 bits, the sums of tiles would be rounded
        positions = math.prod(x.shape[1:3])
        fits = (
            positions >= thresholds.TILED_POSITIONS
            and positions * max(kernel.shape[2:]) <= thresholds.TILED_VALUES
        )
        return (
            is_3x3 and is_exact and fits and 2 * min(kernel.shape[2:]) >= thresholds.TILED_CHANNELS
        )


# Condition, lowering of the outputs and lowering of the gradients on a CPU; the first row whose
# condition holds is used.
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
