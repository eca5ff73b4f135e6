"""The curve of a learning-rate sweep."""

from pathlib import Path

import numpy as np


def draw_curve(
    learning_rates: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    chosen: float,
    path: Path,
) -> None:
    """Draws losses over learning rates, float[N] each, with a mark where one was chosen.

    Args:
        learning_rates: of each step, drawn on a logarithmic axis.
        losses: of each step.
        smoothed: the same losses without their noise.
        chosen: the learning rate that is marked.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(learning_rates, losses, color="0.75", linewidth=1, label="batch")
    axes.plot(learning_rates, smoothed, color="tab:blue", linewidth=2, label="smoothed")
    axes.axvline(chosen, color="tab:orange", linestyle="--", label=f"steepest, {chosen:.1e}")
    axes.set_xscale("log")
    # Where it ends the loss explodes, which would flatten all that is of interest.
    span = float(smoothed.max() - smoothed.min()) or 1.0
    low = float(smoothed.min())
    start = float(smoothed[: max(len(smoothed) // 2, 1)].max())
    axes.set_ylim(low - 0.1 * (start - low or span), start + 0.3 * (start - low or span))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate sweep")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
