"""Weighted sums of per-example values, on the device.

The sums are copied to the host only when a line of metrics is written. Evaluation is exact for any
number of devices and any padding: padding examples have weight 0, and sums are divided only once.
"""

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct


class MetricSums(struct.PyTreeNode):
    """Sum of `value · weight` and sum of the weights for each metric."""

    values: dict[str, jax.Array]
    weights: dict[str, jax.Array]

    @classmethod
    def zeros(cls, names: Iterable[str]) -> "MetricSums":
        """Returns zero sums for the given metrics."""
        zeros = {name: jnp.float32(0) for name in names}
        return cls(values=zeros, weights=dict(zeros))

    @classmethod
    def of(cls, metrics: Mapping[str, tuple[jax.Array, jax.Array]]) -> "MetricSums":
        """Returns the sums over a batch, given each metric's values and weights of equal shape."""
        # A value of weight 0 is ignored, even if it is NaN.
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

    def zeros_like(self) -> "MetricSums":
        """Returns zero sums for the same metrics, with the same sharding."""
        return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), self)

    def means(self) -> dict[str, float]:
        """Returns the weighted means as Python floats, `loss` first; waits for the device."""
        sums = jax.device_get(self)
        means = {
            name: float(value) / (float(sums.weights[name]) or math.nan)  # NaN without examples
            for name, value in sums.values.items()
        }
        return {"loss": means.pop("loss"), **means}


class EvaluationSums(struct.PyTreeNode):
    """Sums over the batches of a split: those of the metrics, and the totals of the task."""

    metrics: MetricSums
    totals: dict[str, jax.Array]

    def __add__(self, other: "EvaluationSums") -> "EvaluationSums":
        return jax.tree.map(jnp.add, self, other)
