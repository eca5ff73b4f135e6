"""Normalization with the statistics of the batch, and a gradient of its own.

Both directions are one pass for the sums and one over the values: the gradient is affine in the
values and in the incoming gradient, with coefficients by channel. What `jax.grad` finds through
mean and variance is the same in many more passes over memory.

Legend: B batch, ... spatial or time axes, C channels; N values of a channel on all devices.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.ops.reductions import sum_by_channel


def normalize_batch(
    epsilon: float, axis: str | None, inputs: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Maps [B, ..., C] to values of mean `bias` and deviation `scale` in each channel.

    Args:
        epsilon: added to the variance before its root is taken.
        axis: the axis of devices whose values are normalized together, if there is one.
        inputs: [B, ..., C].
        scale: [C], in the dtype to compute in.
        bias: [C], likewise.

    Returns:
        The normalized values, and the mean [C] and the biased variance [C] that they had, which
        carry no gradient.
    """
    return _normalize(epsilon, axis, inputs, scale, bias)


def _forward(
    epsilon: float, axis: str | None, inputs: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[Any, Any]:
    values, count = inputs.astype(scale.dtype), _count(inputs, axis)
    mean = _sum(values, axis) / count

    def of_centred(values: jax.Array) -> jax.Array:
        return _sum(jnp.square(values - mean), axis) / count

    def of_squares(values: jax.Array) -> jax.Array:
        return jnp.maximum(_sum(jnp.square(values), axis) / count - jnp.square(mean), 0)

    if inputs.dtype != jnp.bfloat16:
        var = of_centred(values)
    else:
        # Both sums in one pass. Where many threads add up, the difference of 32-bit squares loses
        # less than the eight bits of bfloat16 had lost; on a CPU a sum is one long chain.
        var = jax.lax.platform_dependent(values, cpu=of_centred, default=of_squares)
    inverse = jax.lax.rsqrt(var + epsilon)
    outputs = (values - mean) * (scale * inverse) + bias
    return (outputs, mean, var), (inputs, mean, inverse, scale)


def _backward(epsilon: float, axis: str | None, saved: Any, gradients: Any) -> tuple[Any, ...]:
    inputs, mean, inverse, scale = saved
    of_outputs, _, _ = gradients
    centred = inputs.astype(scale.dtype) - mean
    sums = sum_by_channel(of_outputs), sum_by_channel(of_outputs * centred)
    total, total_by_centred = sums if axis is None else jax.lax.psum(sums, axis)
    factor, count = scale * inverse, _count(inputs, axis)
    slope = factor * jnp.square(inverse) * total_by_centred / count
    of_values = factor * (of_outputs - total / count) - slope * centred
    return of_values.astype(inputs.dtype), sums[1] * inverse, sums[0]


_normalize: Any = jax.custom_vjp(lambda *given: _forward(*given)[0], nondiff_argnums=(0, 1))
_normalize.defvjp(_forward, _backward)


def _count(values: jax.Array, axis: str | None) -> int:
    devices = 1 if axis is None else jax.lax.axis_size(axis)
    return math.prod(values.shape[:-1]) * devices


def _sum(values: jax.Array, axis: str | None) -> jax.Array:
    local = sum_by_channel(values)
    return local if axis is None else jax.lax.psum(local, axis)
