"""Live training curves in a notebook."""

import io
from typing import Any

from flaxdl.training.writers.writer import Writer

# Okabe and Ito's colors, which people with color blindness can tell apart.
_COLORS = {"train": "#0072b2", "validation": "#d55e00", "test": "#009e73"}
_MARKS = {"train": "", "validation": "o", "test": "*"}


class LiveCurve(Writer):
    """Plots loss and accuracy below a notebook cell, updated with every line of metrics.

    >>> result = flaxdl.train(config, "runs/mine", writers=[flaxdl.LiveCurve()])

    Args:
        metric: name of the metric to plot next to the loss.
    """

    def __init__(self, metric: str = "accuracy"):
        from IPython.display import display

        self._names = ("loss", metric)
        self._lines: list[dict[str, Any]] = []
        self._place = display(self._drawn(), display_id=True)

    def line(self, line: dict[str, Any]) -> None:
        """Adds a point to the curves."""
        self._lines.append(line)
        if self._place is not None:  # None outside IPython
            self._place.update(self._drawn())

    def _drawn(self) -> Any:
        from IPython.display import Image
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3), layout="constrained")
        for panel, name in zip(figure.subplots(1, 2), self._names, strict=True):
            panel.set(title=name, xlabel="step")
            panel.grid(alpha=0.3)
            for split, color in _COLORS.items():
                points = [
                    (line["step"], line[name])
                    for line in self._lines
                    if line["split"] == split and line.get(name) is not None
                ]
                if points:
                    panel.plot(
                        *zip(*points, strict=True), marker=_MARKS[split], color=color, label=split
                    )
            if panel.lines:
                panel.legend()
        png = io.BytesIO()
        figure.savefig(png, format="png")
        return Image(data=png.getvalue())
