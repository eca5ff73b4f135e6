"""Weighted sums of per-example values, and the file in which a run writes its metrics.

Sums live on the device and are read only when a line is written. An evaluation is exact for any
number of devices and any padding: padded examples have weight 0, and sums are divided once.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Split = str  # "train", "validation" or "test"


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


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, in the order of steps.

    A line is `{"step": 120, "split": "validation", "loss": 0.31, "accuracy": 0.92}`. Numbers that
    are not finite are written as null, since JSON has no word for them.
    """

    def __init__(self, path: Path):
        self._path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            # A line that a crash left half-written is measured again.
            whole, _, _ = path.read_text().rpartition("\n")
            self.lines = [json.loads(line) for line in whole.splitlines()]

    def rewind(self, step: int, *, keep_test: bool = True) -> None:
        """Drops the lines of later steps, which a resumed run is about to measure again.

        A run that was finished and now goes on for longer drops its test line as well.
        """
        self.lines = [
            line
            for line in self.lines
            if line["step"] <= step and (keep_test or line["split"] != "test")
        ]
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        os.replace(unfinished, self._path)

    def has(self, step: int, split: Split) -> bool:
        """Whether the line of this step and split is already written."""
        return any(line["step"] == step and line["split"] == split for line in reversed(self.lines))

    def of_split(self, split: Split) -> list[dict[str, Any]]:
        """The lines of one split, oldest first."""
        return [line for line in self.lines if line["split"] == split]

    def append(self, step: int, split: Split, values: Mapping[str, float]) -> dict[str, Any]:
        """Writes one line and returns it."""
        line = {"step": step, "split": split} | {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        return line
