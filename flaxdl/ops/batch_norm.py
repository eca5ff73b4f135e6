"""Batch normalization (Ioffe and Szegedy, "Batch Normalization", 2015).

Legend: B batch, ... spatial or time axes, C channels.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.dispatch import accelerated, by_platform
from flaxdl.ops.reductions import sum_by_channel


def batch_norm(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, axis: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes each channel over the batch, in the dtype of scale and bias.

    Args:
        inputs: [B, ..., C].
        scale: [C], standard deviation of each channel after normalization.
        bias: [C], mean of each channel after normalization.
        epsilon: constant added to the variance before taking its square root.
        axis: name of the device axis to average statistics over, if any.

    Returns:
        The normalized inputs [B, ..., C], and the mean [C] and biased variance [C] of the inputs.
        No gradient is propagated through the mean and the variance.
    """
    x = inputs.astype(scale.dtype)

    def average(values: jax.Array) -> jax.Array:
        mean = values.mean(tuple(range(values.ndim - 1)))
        return mean if axis is None else jax.lax.pmean(mean, axis)

    mean = average(x)
    var = average(jnp.square(x - mean))
    outputs = normalize(x, mean, var, scale, bias, epsilon)
    return outputs, jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)


def masked_batch_norm(
    inputs: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    mask: jax.Array,
    *,
    epsilon: float,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Like `batch_norm`, with the statistics of the positions where `mask` is True.

    Args:
        inputs: [B, ..., C], finite also where `mask` is False.
        scale: [C], standard deviation of each channel after normalization.
        bias: [C], mean of each channel after normalization.
        mask: bool[B, ..., 1], False for padding.
        epsilon: constant added to the variance before taking its square root.
        axis: name of the device axis to average statistics over, if any.

    Returns:
        The normalized inputs [B, ..., C], also at padding; the mean [C] and biased variance [C];
        and the number of positions. No gradient is propagated through the last three.
    """
    x = inputs.astype(scale.dtype)

    def total(values: jax.Array) -> jax.Array:
        total = jnp.sum(jnp.where(mask, values, 0), tuple(range(values.ndim - 1)))
        return total if axis is None else jax.lax.psum(total, axis)

    count = jnp.maximum(total(mask.astype(x.dtype))[0], 1)
    mean = total(x) / count
    var = total(jnp.square(x - mean)) / count
    outputs = normalize(x, mean, var, scale, bias, epsilon)
    mean, var, count = (jax.lax.stop_gradient(x) for x in (mean, var, count))
    return outputs, mean, var, count


def normalize(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> jax.Array:
    """Normalizes each channel of [B, ..., C] with a given mean and variance [C]."""
    return (x - mean) * (scale * jax.lax.rsqrt(var + epsilon)) + bias


# The forward and the backward pass each read the values twice, once for the sums and once for the
# result: the gradient is affine in the values and in the incoming gradient, with coefficients per
# channel. `jax.grad` computes the same through mean and variance, in many more passes over memory.


def _forward(
    inputs: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, axis: str | None = None
) -> tuple[Any, Any]:
    x, count = inputs.astype(scale.dtype), _count(inputs, axis)
    mean = _sum(x, axis) / count

    def var_of_centered(x: jax.Array) -> jax.Array:
        return _sum(jnp.square(x - mean), axis) / count

    def var_of_squares(x: jax.Array) -> jax.Array:
        return jnp.maximum(_sum(jnp.square(x), axis) / count - jnp.square(mean), 0)

    if inputs.dtype != jnp.bfloat16:
        var = var_of_centered(x)
    else:
        # Computes both sums in one pass. If sums are computed in parallel, the difference of
        # float32 squares loses less precision than the rounding of the inputs to bfloat16. On a
        # CPU, where each sum is one sequential chain, it would lose more.
        var = by_platform(var_of_squares, cpu=var_of_centered)(x)
    inverse = jax.lax.rsqrt(var + epsilon)
    outputs = (x - mean) * (scale * inverse) + bias
    return (outputs, mean, var), (inputs, mean, inverse, scale)


def _backward(
    saved: Any, gradients: Any, *, epsilon: float, axis: str | None = None
) -> tuple[jax.Array, ...]:
    inputs, mean, inverse, scale = saved
    gradient, _, _ = gradients
    centered = inputs.astype(scale.dtype) - mean
    sums = sum_by_channel(gradient), sum_by_channel(gradient * centered)
    total, total_by_centered = sums if axis is None else jax.lax.psum(sums, axis)
    factor, count = scale * inverse, _count(inputs, axis)
    slope = factor * jnp.square(inverse) * total_by_centered / count
    d_inputs = factor * (gradient - total / count) - slope * centered
    return d_inputs.astype(inputs.dtype), sums[1] * inverse, sums[0]


def _count(values: jax.Array, axis: str | None) -> int:
    devices = 1 if axis is None else jax.lax.axis_size(axis)
    return math.prod(values.shape[:-1]) * devices


def _sum(values: jax.Array, axis: str | None) -> jax.Array:
    local = sum_by_channel(values)
    return local if axis is None else jax.lax.psum(local, axis)


batch_norm = accelerated(
    batch_norm,
    fast=lambda *arrays, **settings: _forward(*arrays, **settings)[0],
    forward=_forward,
    backward=_backward,
)
