"""Pooling: the maximum or the average of windows over one to three spatial axes.

Legend: B batch, *spatial one to three axes, C channels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from flaxdl.errors import UserError
from flaxdl.layers.windows import check_window_fits, per_axis
from flaxdl.ops import pooling

Sizes = int | Sequence[int]


def max_pool(
    inputs: jax.Array, window: Sizes, *, stride: Sizes | None = None, padding: Sizes = 0
) -> jax.Array:
    """Takes the maximum of each window, as `torch.nn.functional.max_pool1d` to `3d`.

    Padding never wins: it counts as minus infinity. Of equal maxima, the first gets the gradient.

    Args:
        inputs: [B, *spatial, C].
        window: sizes of the window; a number stands for the same on every axis, here and below.
        stride: steps between windows; those of the window if None.
        padding: positions added on both sides of each axis, at most half the window.

    Raises:
        UserError: if the inputs, once padded, are smaller than the window.
    """
    return pooling.max_pool(inputs, **_settings(inputs, window, stride, padding))


def avg_pool(
    inputs: jax.Array, window: Sizes, *, stride: Sizes | None = None, padding: Sizes = 0
) -> jax.Array:
    """Takes the average of each window, as `torch.nn.functional.avg_pool1d` to `3d`.

    Padded zeros count as values (PyTorch's `count_include_pad=True`).

    Args:
        inputs: [B, *spatial, C].
        window: sizes of the window; a number stands for the same on every axis, here and below.
        stride: steps between windows; those of the window if None.
        padding: zeros added on both sides of each axis, at most half the window.

    Raises:
        UserError: if the inputs, once padded, are smaller than the window.
    """
    return pooling.avg_pool(inputs, **_settings(inputs, window, stride, padding))


def _settings(
    inputs: jax.Array, window: Sizes, stride: Sizes | None, padding: Sizes
) -> dict[str, tuple[int, ...]]:
    dimensions = inputs.ndim - 2
    window = per_axis("window", window, dimensions)
    strides = window if stride is None else per_axis("stride", stride, dimensions)
    padding = per_axis("padding", padding, dimensions)
    if any(2 * amount > size for amount, size in zip(padding, window, strict=True)):
        raise UserError(f"padding must be at most half the window {window}, got {padding}")
    check_window_fits("inputs", inputs, window, padding)
    return {"window": window, "strides": strides, "padding": padding}


def adaptive_max_pool(inputs: jax.Array, output_size: Sizes) -> jax.Array:
    """Takes maxima of as many windows as asked for, as `torch`'s `adaptive_max_pool1d` to `3d`.

    Args:
        inputs: [B, *spatial, C], of any size.
        output_size: positions in the result, along every axis or along each.
    """
    return _pool_adaptively(inputs, output_size, _first_maximum)


def adaptive_avg_pool(inputs: jax.Array, output_size: Sizes) -> jax.Array:
    """Takes averages of as many windows as asked for, as `torch`'s `adaptive_avg_pool1d` to `3d`.

    Args:
        inputs: [B, *spatial, C], of any size.
        output_size: positions in the result, along every axis or along each.
    """
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    return _pool_adaptively(wide, output_size, jnp.mean).astype(inputs.dtype)


def _pool_adaptively(inputs: jax.Array, output_size: Sizes, reduce: Callable) -> jax.Array:
    """Pools one axis after the other, which the maximum and the average of a box allow.

    The last axis goes first: of equal maxima this finds the first one in memory, as PyTorch does.
    """
    sizes = per_axis("output_size", output_size, inputs.ndim - 2)
    outputs = inputs
    for axis in range(len(sizes), 0, -1):
        outputs = _pool_axis(outputs, axis, sizes[axis - 1], reduce)
    return outputs


def _pool_axis(inputs: jax.Array, axis: int, count: int, reduce: Callable) -> jax.Array:
    """Reduces an axis of `size` positions to `count` windows.

    Window i begins at floor(i size / count) and ends before ceil((i + 1) size / count): windows
    overlap where the division leaves a remainder.
    """
    size = inputs.shape[axis]
    if size % count == 0:
        before, after = inputs.shape[:axis], inputs.shape[axis + 1 :]
        return reduce(inputs.reshape(*before, count, size // count, *after), axis + 1)
    windows = [
        jax.lax.slice_in_dim(inputs, i * size // count, -(-(i + 1) * size // count), axis=axis)
        for i in range(count)
    ]
    return jnp.stack([reduce(window, axis) for window in windows], axis)


def _first_maximum(values: jax.Array, axis: int) -> jax.Array:
    """Returns maxima whose gradient goes to the first of equal values; `jnp.max` would split it."""
    index = jnp.argmax(values, axis, keepdims=True)
    return jnp.take_along_axis(values, index, axis).squeeze(axis)
