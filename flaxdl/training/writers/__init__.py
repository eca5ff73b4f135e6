"""Where metrics go: `metrics.jsonl`, the console, TensorBoard, Weights & Biases, a notebook.

Here belongs another metrics backend, one per file; a writer has the methods of `loop.Writer`.
"""

from flaxdl.training.writers.live import LiveCurve

__all__ = ["LiveCurve"]
