"""Metrics backends: `metrics.jsonl`, the console, TensorBoard, Weights & Biases, a notebook.

Here belongs another metrics backend, one per file; it is a subclass of `Writer`.
"""

from flaxdl.training.writers.live import LiveCurve
from flaxdl.training.writers.writer import Writer

__all__ = ["LiveCurve", "Writer"]
