"""The interface of experiments, the rules for verdicts, and the style of figures."""

import importlib
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from jax.scipy.special import betainc

from flaxdl.checks import did_you_mean
from flaxdl.course import EXPERIMENTS
from flaxdl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Outcome = Literal["holds", "holds in part", "does not hold here", "exact"]
Results = Mapping[str, Any]
"""Measured values, as stored in JSON: keys are strings, numbers are Python numbers."""

PILOT_SEEDS = (100, 101)
"""Seeds for the choice of learning rates; recorded results are those of other seeds."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colors, which color-blind readers can tell apart on light and dark pages."""
INK = "#808081"
"""Color of text and axes, which is replaced by the color of the page's text."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of an experiment, with the numbers that decided it."""

    outcome: Outcome
    reason: str
    """A sentence with the deciding numbers."""


class Experiment(Protocol):
    """Interface of an experiment: a module of `flaxdl.course` with these names."""

    CLAIM: str
    """The claim, in a sentence."""
    EXPECTED: str
    """The result that was expected before the first recorded run."""
    SEEDS: int
    """Number of recorded seeds, which start at 0; exact claims need only one."""

    def measure(self, seeds: Sequence[int], *, quick: bool) -> Results:
        """Runs the experiment for each seed; `quick` reduces it to a minute or less."""
        ...

    def verdict(self, results: Results) -> Verdict:
        """Decides whether the claim holds, from the results alone."""
        ...

    def draw(self, results: Results) -> "Figure":
        """Draws the figure of the results."""
        ...


def load_experiment(name: str) -> Experiment:
    """Imports an experiment.

    Raises:
        UserError: if there is no experiment of this name; the message lists all of them.
    """
    if name not in EXPERIMENTS:
        raise UserError(
            f"there is no experiment {name!r}{did_you_mean(name, EXPERIMENTS)}; "
            f"the experiments are {', '.join(EXPERIMENTS)}"
        )
    return cast(Experiment, importlib.import_module(f"flaxdl.course.{name}"))


def is_larger(differences: Sequence[float], margin: float) -> bool:
    """Returns True if all paired differences are positive and their median reaches the margin.

    For five seeds, the same sign in all of them has a one-sided p-value of 1/32.

    Args:
        differences: one difference per seed, at least five.
        margin: smallest median that counts, in the unit of the differences.

    Raises:
        ValueError: if there are fewer than five differences.
    """
    if len(differences) < 5:
        raise ValueError(f"at least 5 paired differences are needed, got {len(differences)}")
    return min(differences) > 0 and statistics.median(differences) >= margin


def is_equal(differences: Sequence[float], margin: float) -> bool:
    """Returns True if the mean of the paired differences is within the margin, at a level of 5 %.

    Two one-sided t-tests (Schuirmann, 1987): the mean must be significantly larger than minus the
    margin, and significantly smaller than the margin. A difference that is merely not significant
    does not count as equal.

    Args:
        differences: one difference per seed, at least ten.
        margin: largest mean difference that counts as equal, in the unit of the differences.

    Raises:
        ValueError: if there are fewer than ten differences.
    """
    count = len(differences)
    if count < 10:
        raise ValueError(f"at least 10 paired differences are needed, got {count}")
    room = margin - abs(statistics.fmean(differences))
    error = statistics.stdev(differences) / count**0.5
    if room <= 0 or error == 0:
        return room > 0
    t, degrees = room / error, count - 1
    # The probability that a t-distributed variable exceeds t.
    p = float(betainc(degrees / 2, 0.5, degrees / (degrees + t**2))) / 2
    return p < 0.05


def best_rate(losses: Mapping[float, Sequence[float]]) -> float:
    """Returns the learning rate with the lowest mean loss over the pilot seeds.

    Args:
        losses: final losses by learning rate; a loss that is not finite excludes its rate.

    Raises:
        ValueError: if no learning rate has finite losses.
    """
    means = {rate: statistics.fmean(values) for rate, values in losses.items()}
    finite = {rate: mean for rate, mean in means.items() if abs(mean) < float("inf")}
    if not finite:
        raise ValueError(f"no learning rate has finite losses: {means}")
    return min(finite, key=finite.__getitem__)


def make_figure(panels: int = 1, *, width: float = 4.0, height: float = 3.0) -> "Figure":
    """Makes a figure with panels side by side, which are its `axes`.

    Args:
        panels: number of panels.
        width: width of each panel in inches.
        height: height of the figure in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    figure.subplots(1, panels)
    return figure


def draw_range(
    axes: "Axes", x: Sequence[float], by_seed: Sequence[Sequence[float]], label: str
) -> None:
    """Draws the median over seeds as a line, and the range as a band.

    Args:
        axes: panel to draw on.
        x: positions [N].
        by_seed: values of each seed, [seeds, N].
        label: name in the legend.
    """
    columns = list(zip(*by_seed, strict=True))
    (line,) = axes.plot(x, [statistics.median(column) for column in columns], "o-", label=label)
    color = line.get_color()
    axes.fill_between(
        x, [min(c) for c in columns], [max(c) for c in columns], color=color, alpha=0.2, linewidth=0
    )


def save_figure(draw: Callable[[], "Figure"], path: Path) -> None:
    """Draws a figure in the style of the course and writes it as SVG.

    Text and axes have the color of the text around the figure, and there is no background.

    Args:
        draw: function that returns the figure.
        path: SVG file to write; its name is the seed of the ids in the file.
    """
    import matplotlib
    from cycler import cycler

    style: Any = {
        **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid")},
        "axes.edgecolor": INK,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=COLORS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 11,
        "figure.facecolor": "none",
        "font.family": "sans-serif",
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "lines.markersize": 5,
        "savefig.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": path.stem,  # the same file for the same results
    }
    written = io.StringIO()
    with matplotlib.rc_context(style):
        draw().savefig(written, format="svg", metadata={"Date": None})
    path.write_text(written.getvalue().replace(INK, "currentColor"), encoding="utf-8")
