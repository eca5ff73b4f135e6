"""Forms of a two-dimensional convolution that are faster on a CPU than XLA's, forward or backward.

XLA's convolution on a CPU packs its operands for large images with many channels. Where there is
little to pack it is slow, by a factor of two to twenty: a single input channel with many outputs,
an image no larger than the window, few input channels when their gradient is taken, windows of one
position. There the same sums are written as matrix products or as scaled copies. Other platforms
convolve.

Legend: B batch, H height, W width, C channels; I input, O output channels; k a position of the
window.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_FEW_POSITIONS = 25  # copies that are still cheaper than a convolution
_MANY_OUTPUTS = 16  # that a copy is scaled to at once
_FEW_CHANNELS = 8


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

    def slices(self, inputs: jax.Array) -> list[jax.Array]:
        """What each position k of the window sees, [B, H, W, I] of the outputs' size."""
        padded = jnp.pad(inputs, [(0, 0), *((p, p) for p in self.padding), (0, 0)])
        counts = [
            (size - reach) // stride + 1
            for size, reach, stride in zip(padded.shape[1:3], self.sizes, self.strides, strict=True)
        ]
        return [
            padded[
                :,
                *(
                    slice(start, start + (count - 1) * stride + 1, stride)
                    for start, count, stride in zip(offset, counts, self.strides, strict=True)
                ),
            ]
            for offset in np.ndindex(self.sizes)
        ]

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


def convolve(window: Window, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [B, H, W, I] with [*sizes, I, O], in the form that suits sizes and platform."""
    return _convolve(window, inputs, kernel)


def _choose(window: Window, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    is_cheap_to_copy = kernel.shape[-2] == 1 and kernel.shape[-1] >= _MANY_OUTPUTS
    if is_cheap_to_copy and 1 < math.prod(window.sizes) <= _FEW_POSITIONS:
        form = window.as_copies
    elif window.holds(inputs):
        form = window.as_product
    else:
        return window.convolve(inputs, kernel)
    return jax.lax.platform_dependent(inputs, kernel, cpu=form, default=window.convolve)


def _forward(window: Window, inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _convolve(window, inputs, kernel), (inputs, kernel)


def _backward(window: Window, saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    form = _gradients_of_convolution
    if window.sizes == (1, 1):
        form = _gradients_of_one_position
    elif window.holds(inputs) or kernel.shape[-2] <= _FEW_CHANNELS:
        form = _gradients_through_product
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


def _gradients_of_one_position(
    window: Window, inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> Gradients:
    """Those of a product over all positions of all images."""
    seen, spread = jax.vjp(lambda x: window.slices(x)[0], inputs)
    rows = seen.reshape(-1, seen.shape[-1])  # [B H W, I]
    of_rows = gradient.reshape(-1, gradient.shape[-1])  # [B H W, O]
    of_seen = (of_rows @ kernel[0, 0].T).reshape(seen.shape)
    return spread(of_seen)[0], (rows.T @ of_rows)[None, None]
