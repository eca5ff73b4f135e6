"""Mixed precision: the floating-point format of a step, and loss scaling for float16.

Master parameters, optimizer state and BatchNorm statistics stay float32 in every precision;
layers reduce (softmax, normalization) in float32, and the loss is computed in float32.
"""

from contextlib import AbstractContextManager
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

Precision = Literal["float32", "tensorfloat32", "bfloat16", "float16"]
"""Floating-point format that a step computes in."""

# Products of float32 arrays are not float32 by default on TPUs and GPUs.
_MATMUL_PRECISIONS = {
    "float32": "highest",
    "tensorfloat32": "tensorfloat32",
    "bfloat16": "default",
    "float16": "default",
}
_SIXTEEN_BITS = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


def matmul_precision(precision: Precision) -> AbstractContextManager[None]:
    """Returns the context in which to trace a step, so that its matmuls have this precision."""
    return jax.default_matmul_precision(_MATMUL_PRECISIONS[precision])


def to_compute_dtype(tree: Any, precision: Precision) -> Any:
    """Returns the tree with its floating-point leaves cast to the compute dtype.

    float32 and tensorfloat32 cast nothing, so float64 stays float64.
    """
    dtype = _SIXTEEN_BITS.get(precision)
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


class LossScale(struct.PyTreeNode):
    """Dynamic loss scaling, which keeps small float16 gradients from underflowing.

    The scale halves whenever a gradient is not finite (that update is skipped) and doubles after
    `GROWTH_INTERVAL` finite ones in a row, as in `torch.amp.GradScaler`. See Micikevicius et al.,
    Mixed Precision Training, https://arxiv.org/abs/1710.03740.
    """

    scale: jax.Array
    finite_steps: jax.Array

    GROWTH_INTERVAL = 2000
    LOWEST = 1.0

    @classmethod
    def create(cls) -> "LossScale":
        """Returns the initial scale, 65,536."""
        return cls(scale=jnp.float32(2.0**16), finite_steps=jnp.int32(0))

    def update(self, finite: jax.Array) -> "LossScale":
        """Returns the updated scale, depending on whether the gradients of the step were finite."""
        finite_steps = jnp.where(finite, self.finite_steps + 1, 0)
        grow = finite_steps == self.GROWTH_INTERVAL
        factor = jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
        return LossScale(
            scale=jnp.clip(self.scale * factor, self.LOWEST, 2.0**24),
            finite_steps=jnp.where(grow, 0, finite_steps),
        )
