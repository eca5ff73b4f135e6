"""PyTorch's initializers, for kernels laid out as [*spatial, inputs per group, outputs].

All return functions `(key, shape, dtype) -> array`, as Linen's `self.param` calls them. "Fan in" is
the number of inputs that one output sums over, "fan out" the number of outputs that one input
reaches; both count every position of a convolution's window.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Initializer = Callable[[jax.Array, Sequence[int], Any], jax.Array]


def fan_in(kernel_shape: Sequence[int]) -> int:
    """Returns how many inputs each output of a kernel sums over."""
    return math.prod(kernel_shape[:-1])


def fan_out(kernel_shape: Sequence[int]) -> int:
    """Returns how many outputs each input of a kernel reaches, as PyTorch counts them.

    A grouped kernel counts the outputs of all groups, although an input reaches only its own.
    """
    return math.prod(kernel_shape[:-2]) * kernel_shape[-1]


def constant(value: float) -> Initializer:
    """Fills with one value."""
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


def normal(standard_deviation: float) -> Initializer:
    """Draws from the normal distribution around zero."""
    return lambda key, shape, dtype: standard_deviation * jax.random.normal(key, shape, dtype)


def uniform(bound: float) -> Initializer:
    """Draws uniformly between `-bound` and `bound`."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def kaiming_uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Draws uniformly within ±1/√(fan in): what `torch.nn.Linear` and `Conv` start from.

    PyTorch writes it as `kaiming_uniform_(weight, a=math.sqrt(5))`.
    """
    return uniform(1 / math.sqrt(fan_in(shape)))(key, shape, dtype)


def kaiming_normal(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Draws with deviation √(2 / fan out): what torchvision's VGG and ResNet start from.

    It keeps the variance of gradients through ReLU (He et al., "Delving Deep into Rectifiers",
    2015). PyTorch writes it as `kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")`.
    """
    return normal(math.sqrt(2 / fan_out(shape)))(key, shape, dtype)


def xavier_uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Draws uniformly within ±√(6 / (fan in + fan out)): what PyTorch's attention starts from.

    It balances forward and backward variance: Glorot and Bengio, "Understanding the Difficulty of
    Training Deep Feedforward Neural Networks", 2010. It is symmetric in the last two axes, so a
    matrix may be given in PyTorch's layout as well.
    """
    return uniform(math.sqrt(6 / (fan_in(shape) + fan_out(shape))))(key, shape, dtype)
