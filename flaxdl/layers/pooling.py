"""Max pooling and average pooling over one to three spatial axes.

Legend: B batch, `*spatial` one to three axes, C channels.
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
    """Applies max pooling over one to three spatial axes.

    Equivalent to `torch.nn.functional.max_pool1d`, `max_pool2d` and `max_pool3d`. Padding has value
    −∞. If a maximum occurs several times in a window, its first occurrence gets the gradient.

    Args:
        inputs: `[B, *spatial, C]`.
        window: size of the window along each spatial axis; as for the other arguments, a single
            number applies to all axes.
        stride: step between neighboring windows; by default, the size of the window.
        padding: number of positions added on both sides of each axis, at most half the window.

    Raises:
        UserError: if the padding exceeds half the window, or if the padded inputs are smaller than
            the window.
    """
    return pooling.max_pool(inputs, **_settings(inputs, window, stride, padding))


def avg_pool(
    inputs: jax.Array, window: Sizes, *, stride: Sizes | None = None, padding: Sizes = 0
) -> jax.Array:
    """Applies average pooling over one to three spatial axes.

    Equivalent to `torch.nn.functional.avg_pool1d`, `avg_pool2d` and `avg_pool3d`. Zeros added by
    padding are included in the average (`count_include_pad=True`, the default in PyTorch).

    Args:
        inputs: `[B, *spatial, C]`.
        window: size of the window along each spatial axis; as for the other arguments, a single
            number applies to all axes.
        stride: step between neighboring windows; by default, the size of the window.
        padding: number of zeros added on both sides of each axis, at most half the window.

    Raises:
        UserError: if the padding exceeds half the window, or if the padded inputs are smaller than
            the window.
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
    """Applies adaptive max pooling over one to three spatial axes.

    Equivalent to `torch.nn.functional.adaptive_max_pool1d`, `adaptive_max_pool2d` and
    `adaptive_max_pool3d`.

    Args:
        inputs: `[B, *spatial, C]`, with spatial axes of any size.
        output_size: size of the output along each spatial axis; a single number applies to all.
    """
    return _pool_adaptively(inputs, output_size, _first_maximum)


def adaptive_avg_pool(inputs: jax.Array, output_size: Sizes) -> jax.Array:
    """Applies adaptive average pooling over one to three spatial axes.

    Equivalent to `torch.nn.functional.adaptive_avg_pool1d`, `adaptive_avg_pool2d` and
    `adaptive_avg_pool3d`.

    Args:
        inputs: `[B, *spatial, C]`, with spatial axes of any size.
        output_size: size of the output along each spatial axis; a single number applies to all.
    """
    wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
    return _pool_adaptively(wide, output_size, jnp.mean).astype(inputs.dtype)


def _pool_adaptively(inputs: jax.Array, output_size: Sizes, reduce: Callable) -> jax.Array:
    """Pools one axis after another, with the same maxima and averages as pooling all axes together.

    The last axis is pooled first, so that among equal maxima the first in memory is found, as in
    PyTorch.
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
    """Returns the maxima; the first of equal values gets all of the gradient, unlike `jnp.max`."""
    index = jnp.argmax(values, axis, keepdims=True)
    return jnp.take_along_axis(values, index, axis).squeeze(axis)
