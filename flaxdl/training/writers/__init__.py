"""Metrics backends: `metrics.jsonl`, the console, TensorBoard, Weights & Biases, notebooks.

A new backend is a subclass of `Writer` in a module of this package.
"""

from flaxdl.training.writers.live import LiveCurve
from flaxdl.training.writers.writer import Writer

__all__ = ["LiveCurve", "Writer"]
