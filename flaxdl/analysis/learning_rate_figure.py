"""Plot of a learning-rate range test."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def draw_curve(
    learning_rates: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    suggested: Mapping[str, float],
    path: Path,
) -> None:
    """Plots losses against learning rates, on a logarithmic axis, and marks suggested ones.

    Args:
        learning_rates: learning rate of each step, float[N].
        losses: training loss of each step, float[N].
        smoothed: smoothed loss of each step, float[N].
        suggested: two learning rates to mark, by label.
        path: path of the PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(learning_rates, losses, color="0.75", linewidth=1, label="batch")
    axes.plot(learning_rates, smoothed, color="tab:blue", linewidth=2, label="smoothed")
    colors = ("tab:orange", "tab:green")
    for (label, rate), color in zip(suggested.items(), colors, strict=True):
        axes.axvline(rate, color=color, linestyle="--", label=f"{label}, {rate:.1e}")
    axes.set_xscale("log")
    # Without limits, the exploding loss at the end would flatten the rest of the curve.
    span = float(smoothed.max() - smoothed.min()) or 1.0
    low = float(smoothed.min())
    start = float(smoothed[: max(len(smoothed) // 2, 1)].max())
    axes.set_ylim(low - 0.1 * (start - low or span), start + 0.3 * (start - low or span))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
