"""PyTorch's initializers, for kernels with layout `[*spatial, inputs per group, outputs]`.

An initializer is a function `(key, shape, dtype) -> array`, as in Linen's `self.param`. `fan_in` is
the number of inputs per output, `fan_out` the number of outputs per input; both count every
position of a convolution's window.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


def fan_in(kernel_shape: Sequence[int]) -> int:
    """Returns the number of inputs per output of a kernel."""
    return math.prod(kernel_shape[:-1])


def fan_out(kernel_shape: Sequence[int]) -> int:
    """Returns the number of outputs per input of a kernel, as PyTorch counts them.

    For a grouped kernel, this includes the outputs of all groups, although an input contributes
    only to the outputs of its own group.
    """
    return math.prod(kernel_shape[:-2]) * kernel_shape[-1]


def constant(value: float) -> Initializer:
    """Returns an initializer that fills the array with a constant."""
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


def normal(standard_deviation: float) -> Initializer:
    """Returns an initializer that samples from a normal distribution with mean 0."""
    return lambda key, shape, dtype: standard_deviation * jax.random.normal(key, shape, dtype)


def uniform(bound: float) -> Initializer:
    """Returns an initializer that samples uniformly from (−bound, bound)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def kaiming_uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Samples uniformly from (−a, a) with a = 1 / √fan_in.

    This is the default of `torch.nn.Linear` and `torch.nn.Conv2d`, equivalent to
    `torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))`.
    """
    return uniform(1 / math.sqrt(fan_in(shape)))(key, shape, dtype)


def kaiming_normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Samples from a normal distribution with mean 0 and standard deviation √(2 / fan_out).

    This preserves the variance of gradients in networks with ReLU (He et al., "Delving Deep into
    Rectifiers", 2015). It is used by torchvision's VGG and ResNet and equivalent to
    `torch.nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")`.
    """
    return normal(math.sqrt(2 / fan_out(shape)))(key, shape, dtype)


def xavier_uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Samples uniformly from (−a, a) with a = √(6 / (fan_in + fan_out)).

    This balances the variance in the forward and backward passes (Glorot and Bengio, "Understanding
    the Difficulty of Training Deep Feedforward Neural Networks", 2010). It is used by PyTorch's
    attention layers. Since the formula is symmetric in the last two axes, it also applies to
    matrices in PyTorch's layout.
    """
    return uniform(math.sqrt(6 / (fan_in(shape) + fan_out(shape))))(key, shape, dtype)
