"""What a person looks at: tables of models and results, and the curve of a run while it trains."""

from flaxdl.report.live import LiveCurve

__all__ = ["LiveCurve"]
