"""Convolution in one, two or three dimensions.

Legend: B batch, T time, D depth, H height, W width, C channels; I input, O output channels.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.checks import check_shape
from flaxdl.errors import UserError
from flaxdl.layers.initializers import Initializer, fan_in, kaiming_uniform, uniform
from flaxdl.layers.windows import check_window_fits, per_axis
from flaxdl.ops.bias import add_bias
from flaxdl.ops.convolution import convolve

AXES_OF_RANK = {3: "B T C", 4: "B H W C", 5: "B D H W C"}


class Conv(nn.Module):
    """Convolution equivalent to `torch.nn.Conv1d`, `Conv2d` and `Conv3d`.

    The inputs determine the number of spatial axes. The parameters are `kernel`
    `[*window, I / groups, O]` and `bias` [O]. Along each spatial axis, the output has
    `(size + 2 padding - dilation (window - 1) - 1) // stride + 1` positions.
    """

    features: int
    """Number of output channels."""
    kernel_size: int | tuple[int, ...]
    """Size of the window along each spatial axis; a single number applies to all axes."""
    stride: int | tuple[int, ...] = 1
    """Step between neighboring windows along each spatial axis."""
    padding: int | tuple[int, ...] = 0
    """Number of zeros added on both sides of each spatial axis."""
    dilation: int | tuple[int, ...] = 1
    """Distance between neighboring elements of a window along each spatial axis."""
    groups: int = 1
    """Number of channel groups; each group of output channels depends only on the corresponding
    group of input channels."""
    use_bias: bool = True
    """Add a learnable bias."""
    kernel_init: Initializer = kaiming_uniform
    """Initializer of the kernel."""
    bias_init: Initializer | None = None
    """Initializer of the bias; by default, uniform in (−a, a) with a = 1 / √fan_in."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Maps `[B, *spatial, I]` to `[B, *spatial, O]`.

        Raises:
            UserError: if the inputs do not have 3, 4 or 5 axes, if the parameters were initialized
                for a different number of axes or channels, if `groups` does not divide the
                channels, or if the padded inputs are smaller than the window.
        """
        name = f"inputs of {'.'.join(self.path) or 'Conv'}"
        if inputs.ndim not in AXES_OF_RANK:
            raise UserError(
                f"{name} must have one to three spatial axes between batch and channels, "
                f"got shape {list(inputs.shape)}"
            )
        if self.has_variable("params", "kernel"):
            kernel_shape = self.get_variable("params", "kernel").shape
            expected = kernel_shape[-2] * self.groups
            check_shape(name, inputs, AXES_OF_RANK[len(kernel_shape)], C=expected)
        in_features = inputs.shape[-1]
        if in_features % self.groups or self.features % self.groups:
            raise UserError(
                f"groups must divide input and output channels, got {self.groups} groups for "
                f"{in_features} and {self.features}"
            )
        dimensions = inputs.ndim - 2
        window = per_axis("kernel_size", self.kernel_size, dimensions)
        padding = per_axis("padding", self.padding, dimensions)
        dilation = per_axis("dilation", self.dilation, dimensions)
        reach = [step * (size - 1) + 1 for size, step in zip(window, dilation, strict=True)]
        check_window_fits(name, inputs, reach, padding)

        kernel_shape = (*window, in_features // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, jnp.float32)
        dtype = jnp.result_type(inputs, kernel)
        outputs = convolve(
            inputs.astype(dtype),
            kernel.astype(dtype),
            strides=per_axis("stride", self.stride, dimensions),
            padding=padding,
            dilation=dilation,
            groups=self.groups,
        )  # [B, *spatial, O]
        if self.use_bias:
            bias_init = self.bias_init or uniform(1 / math.sqrt(fan_in(kernel_shape)))
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            outputs = add_bias(outputs, bias)
        return outputs
