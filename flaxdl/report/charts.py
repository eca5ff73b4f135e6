"""Charts by Matplotlib as SVG that takes its colours and letters from the page it stands in.

What is drawn in a stand-in colour gets a variable of the page's style sheet instead, so that one
picture is right in light, in dark and on paper; letters stay letters.
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

_INK, _GRID = "#010101", "#020202"
_SERIES = ("#030303", "#040404", "#050505", "#060606", "#070707", "#080808")
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, 1)
}
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))  # not by colour alone
_MOST_POINTS = 500
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.subplot.bottom": 0.16,
    "figure.subplot.left": 0.15,
    "figure.subplot.right": 0.98,
    "figure.subplot.top": 0.95,
    "font.size": 12,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "flaxdl",
    "text.color": _INK,
    "text.parse_math": False,  # a name with dollars is no formula
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Series:
    """A line of a chart; values that are None or not finite leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Chart:
    """A chart, and the same in words."""

    title: str
    svg: Markup
    words: str


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    best: tuple[float, str] | None = None,
) -> Chart:
    """Draws lines over steps; where they span orders of magnitude, on a logarithmic axis.

    Args:
        title: what the values are.
        series: the lines, up to six of which have a colour and a dash of their own.
        best: a step that is marked, and what it is called.
    """

    from matplotlib.ticker import MaxNLocator

    def draw(axes: Any) -> None:
        for number, one in enumerate(series):
            x, y = _points(one)
            axes.plot(
                x,
                y,
                color=_SERIES[number % len(_SERIES)],
                linestyle=_DASHES[number % len(_DASHES)],
                linewidth=1.8,
                marker="o" if len(x) <= 30 else None,
                markersize=3.5,
                label=one.name,
            )
        if best is not None:
            axes.axvline(best[0], color=_INK, linewidth=1, linestyle=":", label=best[1])
        if _spans_magnitudes(series):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        last = max(max(one.x, default=0) for one in series)
        axes.set_xlim(0, 1.03 * max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("step")
        axes.grid(visible=True)
        if len(series) > 1 or best is not None:
            axes.legend()

    words = f"{title} over steps. " + " ".join(_in_words(one) for one in series)
    return Chart(title, _svg(draw, words), words)


def calibration_chart(
    confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray, error: float
) -> Chart:
    """Draws the share of right answers over their probability, with as large dots as there are."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=":", label="as it should be")
        axes.plot(confidence, accuracy, color=_SERIES[0], linewidth=1.8, label="this run")
        sizes = 20 + 200 * count / count.sum()
        axes.scatter(confidence, accuracy, s=sizes, color=_SERIES[0])
        axes.set_xlim(0, 1.05)
        axes.set_ylim(0, 1.05)
        axes.set_xticks([0.2, 0.4, 0.6, 0.8, 1.0])
        axes.set_xlabel("probability of the answer")
        axes.set_ylabel("share that is right")
        axes.grid(visible=True)
        axes.legend()

    points = ", ".join(
        f"of {n} answers with a probability of about {p:.0%}, {a:.0%} are right"
        for p, a, n in zip(confidence, accuracy, count, strict=True)
    )
    words = f"Calibration, with an expected error of {error:.1%}: {points}."
    return Chart("Calibration", _svg(draw, words), words)


def _svg(draw: Any, words: str) -> Markup:
    """What `draw` does with axes, as an SVG element that says the same in words."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that only the browser has
        figure = Figure(figsize=(5.6, 3.3))
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    # Only what something refers to needs its id, which is a hash of what it is.
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", rest)
    for colour, variable in _VARIABLES.items():
        rest = rest.replace(colour, variable)
    head = Markup('<svg class="chart" role="img" aria-label="{}" {}>').format(
        words, Markup(view_box[0])
    )
    return head + Markup(rest.replace("xlink:href", "href").strip())


def _points(one: Series) -> tuple[np.ndarray, np.ndarray]:
    """As many points as can be told apart: means of neighbours where there are more."""
    x = np.array(one.x, float)
    y = np.array([np.nan if value is None else value for value in one.y], float)
    y[~np.isfinite(y)] = np.nan
    if len(x) <= _MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
    means = [y[p].mean() if np.isfinite(y[p]).all() else np.nan for p in parts]
    return np.array([x[part].mean() for part in parts]), np.array(means)


def _spans_magnitudes(series: Sequence[Series]) -> bool:
    """Whether most values lie so far apart that a linear axis would hide the small ones."""
    values = np.concatenate([_points(one)[1] for one in series])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0:
        return False
    low, high = np.quantile(values, [0.25, 0.75])
    return bool(high > 100 * low)


def _in_words(one: Series) -> str:
    known = [(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None and np.isfinite(y)]
    if not known:
        return f"{one.name}: nothing finite."
    (start, first), (end, last) = known[0], known[-1]
    low, high = min(y for _, y in known), max(y for _, y in known)
    return (
        f"{one.name}: {first:.4g} at {start:g}, {last:.4g} at {end:g}, "
        f"between {low:.4g} and {high:.4g}."
    )
