"""Weighted sums of per-example values, on the device.

They are read only when a line of metrics is written. An evaluation is exact for any number of
devices and any padding: padded examples have weight 0, and sums are divided once.
"""

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class MetricSums(struct.PyTreeNode):
    """By metric, the sum of `value · weight`, and the sum of the weights."""

    values: dict[str, jax.Array]
    weights: dict[str, jax.Array]

    @classmethod
    def zeros(cls, names: Iterable[str]) -> "MetricSums":
        """Sums over nothing."""
        zeros = {name: jnp.float32(0) for name in names}
        return cls(values=zeros, weights=dict(zeros))

    @classmethod
    def of(cls, metrics: Mapping[str, tuple[jax.Array, jax.Array]]) -> "MetricSums":
        """Sums over one batch, given each metric's values and their weights, of one shape."""
        # A value without weight does not count, not even as NaN.
        return cls(
            values={
                name: jnp.sum(jnp.where(weights > 0, values * weights, 0), dtype=jnp.float32)
                for name, (values, weights) in metrics.items()
            },
            weights={
                name: jnp.sum(weights, dtype=jnp.float32) for name, (_, weights) in metrics.items()
            },
        )

    def __add__(self, other: "MetricSums") -> "MetricSums":
        return jax.tree.map(jnp.add, self, other)

    def emptied(self) -> "MetricSums":
        """Sums over nothing of the same metrics, laid over the devices in the same way."""
        return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), self)

    def means(self) -> dict[str, float]:
        """The weighted means, as Python floats, the loss first; waits for the device."""
        sums = jax.device_get(self)
        means = {
            # Over nothing there is no mean.
            name: float(value) / (float(sums.weights[name]) or math.nan)
            for name, value in sums.values.items()
        }
        return {"loss": means.pop("loss"), **means}
