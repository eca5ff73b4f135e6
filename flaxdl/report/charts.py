"""Matplotlib charts as inline SVG that uses the colors and fonts of the page.

Placeholder colors are replaced by CSS variables, so the same chart works in light and dark mode and
in print. Text stays text. The legend is HTML above the chart, where it covers no line, and the
points are JSON, from which the page shows values on hover.
"""

import io
import json
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
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, 1)
}
# Lines differ by more than color. Lengths in line widths.
_DASHES = ((), (4, 2), (6, 2, 1.5, 2), (1.5, 2), (6, 1.5, 1.5, 1.5, 1.5, 1.5), (1, 3))
_MAX_POINTS = 500
_MIN_CLIPPED = 8  # points; with fewer every point is shown
_SMALL, _THOUSANDS, _LARGE = 1e-4, 1e3, 1e7  # values from which numbers are written differently
_LONG = 1e5  # values from which numbers fill the margin of a chart
WIDTH, SMALL_WIDTH = 5.6, 3.9  # inches
_HEIGHT = 3.2
_MARGINS = {"left": 0.9, "right": 0.18, "bottom": 0.53, "top": 0.12}  # inches
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 12,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "flaxdl",
    "text.color": _INK,
    "text.parse_math": False,  # names may contain dollar signs
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Series:
    """A line of a chart; None and non-finite values leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    best: float | None = None
    """x of the best checkpoint, whose point is marked."""

    @property
    def best_point(self) -> tuple[float, float] | None:
        """The finite point nearest to the best checkpoint."""
        points = _finite(self)
        if self.best is None or not points:
            return None
        best = self.best
        return min(points, key=lambda point: abs(point[0] - best))


@dataclass(frozen=True)
class Chart:
    """A chart as SVG, with its legend, its text alternative and its points."""

    title: str
    svg: Markup
    description: str
    legend: Sequence[tuple[Markup, str]] = ()
    """Swatch and label of each line."""
    note: str = ""
    data: str = ""
    """JSON from which the page shows values on hover."""
    width: float = WIDTH
    """Inches, in proportion to which the charts of a row share its width."""


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "step",
    steps_per_epoch: float | None = None,
    from_zero: bool = False,
    percent: bool = False,
    width: float = WIDTH,
) -> Chart:
    """Draws lines over steps or epochs, on a logarithmic axis if values span orders of magnitude.

    Args:
        title: name of the quantity.
        series: lines; up to six of them have distinct colors and dashes.
        unit: unit of the x axis, `step` or `epoch`.
        steps_per_epoch: steps for which the page also shows the epoch on hover.
        from_zero: True to begin the y axis at 0 and show every value; otherwise the axis may be
            logarithmic, or leave out outliers such as the loss of the first steps.
        percent: True to show values, which are fractions, in percent.
        width: width in inches.
    """
    from matplotlib.ticker import MaxNLocator

    is_log = not from_zero and not percent and _spans_magnitudes(series)
    limits, note = (None, "") if from_zero or is_log else _robust_limits(series, percent)
    last = max(max(one.x, default=0) for one in series)
    high = 1.03 * (max(last, 1) if unit == "step" else last or 1)

    def draw(axes: Any) -> None:
        _draw_lines(axes, series)
        if is_log:
            axes.set_yscale("log")
        if limits is not None:
            axes.set_ylim(*limits)
        if from_zero:
            highest = max((y for one in series for _, y in _finite(one)), default=0)
            axes.set_ylim(0, 1.05 * highest or 1)
        _format_values(axes.yaxis, axes.get_ylim(), is_log=is_log, percent=percent)
        axes.set_xlim(0, high)
        label = 0.3 + 0.09 * max(3, len(f"{high:,.0f}"))  # inches of a number and a space
        bins = max(2, int((width - _MARGINS["left"]) / label))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=bins, integer=unit == "step"))
        axes.xaxis.set_major_formatter("{x:,.10g}")
        axes.set_xlabel(unit)
        axes.grid(visible=True)

    # A line without points, such as that of a run without validation, keeps its color.
    drawn = [(place, one) for place, one in enumerate(series) if one.x]
    details = " ".join(_described(one, unit, percent) for _, one in drawn)
    description = f"{title} over {unit}s. {details}{note and ' '}{note}"
    return Chart(
        title=title,
        svg=_svg(draw, description, width),
        description=description,
        legend=[(_swatch(place), _label(one, unit, percent)) for place, one in drawn],
        note=note,
        data=_data(series, unit, width, (0, high), steps_per_epoch, percent),
        width=width,
    )


def _draw_lines(axes: Any, series: Sequence[Series]) -> None:
    """Draws the lines, with a ring around the best checkpoint of each."""
    for place, one in enumerate(series):
        x, y = _points(one)
        axes.plot(x, y, marker="o" if len(x) <= 30 else None, markersize=3.5, **_style(place))
        if one.best_point is not None:
            axes.plot(
                *one.best_point,
                marker="o",
                markersize=8,
                markerfacecolor="none",
                markeredgewidth=1.8,
                color=_style(place)["color"],
            )
    marked = {one.best for one in series if one.best is not None}
    if len(marked) == 1:
        axes.axvline(*marked, color=_INK, linewidth=1, linestyle=":")


def _format_values(axis: Any, limits: tuple[float, float], *, is_log: bool, percent: bool) -> None:
    """Formats the y axis so that no common factor or offset is needed, which would be cut off."""
    from matplotlib.ticker import PercentFormatter

    largest = max(map(abs, limits))
    if percent:
        axis.set_major_formatter(PercentFormatter(1.0))
    elif is_log or largest < _SMALL or largest >= _LARGE:
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    elif largest >= _THOUSANDS:
        axis.set_major_formatter("{x:,.10g}")
    else:
        axis.get_major_formatter().set_useOffset(False)


def number(value: float, *, percent: bool = False) -> str:
    """Returns a value with four significant digits, or a fraction in percent."""
    if percent:
        return f"{value:.2%}"
    is_long = _THOUSANDS <= abs(value) < _LARGE
    return f"{value:,.0f}" if is_long else f"{value:#.4g}"


def calibration_chart(
    confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray, error: float
) -> Chart:
    """Draws a reliability diagram: accuracy against confidence, markers sized by bin count."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=1, linestyle=":")
        axes.plot(confidence, accuracy, **_style(0))
        if len(count):
            axes.scatter(confidence, accuracy, s=20 + 200 * count / count.sum(), color=_SERIES[0])
        axes.set_xlim(0, 1.05)
        axes.set_ylim(0, 1.05)
        axes.set_xticks([0.2, 0.4, 0.6, 0.8, 1.0])
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.grid(visible=True)

    points = ", ".join(
        f"of {n} predictions with a confidence of about {p:.0%}, {a:.0%} are correct"
        for p, a, n in zip(confidence, accuracy, count, strict=True)
    )
    description = f"Calibration, with an expected calibration error of {error:.1%}: {points}."
    series = [Series("accuracy", confidence.tolist(), accuracy.tolist())]
    dotted = _line("var(--ink)", (1, 2), 1.5)
    return Chart(
        title="Calibration",
        svg=_svg(draw, description, WIDTH),
        description=description,
        legend=[(_swatch(0), "this run"), (dotted, "perfect calibration")],
        data=_data(series, "confidence", WIDTH, (0, 1.05), None),
    )


def forecast_chart(
    title: str,
    context: Sequence[float],
    truth: Sequence[float],
    forecast: Sequence[float],
    naive: Sequence[float],
) -> Chart:
    """Draws a forecast and the seasonal naive one over the truth, after their common context.

    Args:
        title: name of the series and the window.
        context: values up to the forecast.
        truth: values that followed, one per step of the horizon.
        forecast: values that the model forecast.
        naive: values of the seasonal naive forecast.
    """
    unit = "steps after the last known value"
    steps = list(range(1, len(truth) + 1))
    series = [
        Series("truth", [*range(1 - len(context), 1), *steps], [*context, *truth]),
        Series("forecast", [0, *steps], [context[-1], *forecast]),
        Series("seasonal naive", [0, *steps], [context[-1], *naive]),
    ]
    limits = (1 - len(context), len(truth))

    def draw(axes: Any) -> None:
        for place, one in enumerate(series):
            axes.plot(one.x, one.y, **_style(place))
        axes.axvline(0, color=_INK, linewidth=1, linestyle=":")
        axes.set_xlim(*limits)
        _format_values(axes.yaxis, axes.get_ylim(), is_log=False, percent=False)
        axes.set_xlabel(unit)
        axes.grid(visible=True)

    description = f"{title}. " + " ".join(_described(one, unit, False) for one in series)
    return Chart(
        title=title,
        svg=_svg(draw, description, WIDTH),
        description=description,
        legend=[(_swatch(place), one.name) for place, one in enumerate(series)],
        data=_data(series, unit, WIDTH, limits, None),
    )


def scatter_chart(title: str, truth: np.ndarray, predicted: np.ndarray) -> Chart:
    """Draws predicted over true values, with a dotted line where they are equal.

    Args:
        title: name of the quantity.
        truth: true values, float[N].
        predicted: predicted values, float[N].
    """
    low, high = min(truth.min(), predicted.min()), max(truth.max(), predicted.max())
    margin = 0.05 * (high - low) or 1.0
    limits = (float(low - margin), float(high + margin))
    drawn = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), _MAX_POINTS)).astype(int))

    def draw(axes: Any) -> None:
        axes.plot(limits, limits, color=_INK, linewidth=1, linestyle=":")
        axes.scatter(truth[drawn], predicted[drawn], s=14, color=_SERIES[0], alpha=0.6, linewidth=0)
        axes.set_xlim(*limits)
        axes.set_ylim(*limits)
        axes.set_xlabel("true")
        is_long = max(map(abs, limits)) >= _LONG  # no place for the name of the y axis
        axes.set_ylabel("" if is_long else "predicted")
        axes.tick_params(labelsize=9.5 if is_long else 12)
        for axis in (axes.xaxis, axes.yaxis):
            _format_values(axis, limits, is_log=False, percent=False)
            axis.get_major_locator().set_params(nbins=3 if is_long else 5)
        axes.grid(visible=True)

    correlation = ""
    if np.ptp(truth) and np.ptp(predicted):
        correlation = f", with a correlation of {np.corrcoef(truth, predicted)[0, 1]:.3f}"
    hidden = len(truth) - len(drawn)
    return Chart(
        title=title,
        svg=_svg(draw, description := f"{title}: {len(truth):,} examples{correlation}.", WIDTH),
        description=description,
        legend=[
            (_dot(), "examples"),
            (_line("var(--ink)", (1, 2), 1.5), "equal to the true value"),
        ],
        note=f"{len(drawn)} of the {len(truth):,} examples are drawn." if hidden else "",
    )


def histogram_chart(title: str, values: np.ndarray) -> Chart:
    """Draws the number of values in bins of equal width, with a dotted line at 0.

    Args:
        title: name of the values.
        values: float[N].
    """
    low, high, least = values.min(), values.max(), 1e-9 * np.abs(values).max()
    if 0 < high - low < least:  # equal up to rounding, which is too little for bins
        low, high = low - least, high + least
    bins = min(max(len(values) // 5, 5), 40)
    counts, edges = np.histogram(values, bins=bins, range=(low, high))

    def draw(axes: Any) -> None:
        axes.stairs(counts, edges, fill=True, color=_SERIES[0], alpha=0.6)
        axes.axvline(0, color=_INK, linewidth=1, linestyle=":")
        axes.set_xlabel("error")
        axes.set_ylabel("examples")
        axes.yaxis.get_major_locator().set_params(integer=True)
        _format_values(axes.yaxis, axes.get_ylim(), is_log=False, percent=False)
        _format_values(axes.xaxis, axes.get_xlim(), is_log=False, percent=False)
        axes.xaxis.get_major_locator().set_params(nbins=4)
        axes.grid(visible=True)

    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    description = f"{title}: median {number(middle)}, 90% between {number(low)} and {number(high)}."
    return Chart(
        title=title,
        svg=_svg(draw, description, SMALL_WIDTH),
        description=description,
        width=SMALL_WIDTH,
    )


def _dot() -> Markup:
    """Returns the swatch of points."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true">'
        '<circle cx="15" cy="4" r="3.5" fill="{}"></circle></svg>'
    ).format(_VARIABLES[_SERIES[0]])


def rows_of(charts: Sequence[Chart], details: Sequence[Chart]) -> list[list[Chart]]:
    """Arranges charts in rows of two or three without empty places.

    Args:
        charts: charts of the metrics, which come first and are larger if there are two.
        details: charts of secondary quantities.
    """
    if len(charts) == 1 and details:
        charts, details = [*charts, details[0]], details[1:]
    return [row for group in (charts, details) for row in _balanced(group)]


def _balanced(charts: Sequence[Chart]) -> list[list[Chart]]:
    """Splits charts into rows of two or three; only a single chart is alone."""
    rows, rest = [], list(charts)
    while rest:
        size = 2 if len(rest) in (2, 4) else 3
        rows.append(rest[:size])
        rest = rest[size:]
    return rows


def _style(number: int) -> dict[str, Any]:
    dashes = _DASHES[number % len(_DASHES)]
    return {
        "color": _SERIES[number % len(_SERIES)],
        "linestyle": (0, dashes) if dashes else "-",
        "linewidth": 1.8,
    }


def _swatch(number: int) -> Markup:
    color = _VARIABLES[_SERIES[number % len(_SERIES)]]
    return _line(color, _DASHES[number % len(_DASHES)], 2.2)


def _line(color: str, dashes: Sequence[float], width: float) -> Markup:
    dashed = Markup(' stroke-dasharray="{}"').format(" ".join(f"{width * d:g}" for d in dashes))
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 8" aria-hidden="true">'
        '<line x1="0" y1="4" x2="30" y2="4" stroke="{}" stroke-width="{}"{}></line></svg>'
    ).format(color, width, dashed if dashes else "")


def _label(one: Series, unit: str, percent: bool) -> str:
    if one.best_point is None:
        return one.name
    x, y = one.best_point
    return f"{one.name} (best checkpoint: {number(y, percent=percent)}, {_place(x, unit)})"


def _place(x: float, unit: str) -> str:
    return f"step {x:,.0f}" if unit == "step" else f"{unit} {x:.4g}"


def _robust_limits(
    series: Sequence[Series], percent: bool
) -> tuple[tuple[float, float] | None, str]:
    """Returns limits of the y axis without outliers, and a note about these; None without any.

    Outliers are more than six interquartile ranges outside of the quartiles.
    """
    values = np.concatenate([_points(one)[1] for one in series])
    values = values[np.isfinite(values)]
    if len(values) < _MIN_CLIPPED:
        return None, ""
    first, third = np.quantile(values, [0.25, 0.75])
    reach = 6 * (third - first)
    is_shown = (values >= first - reach) & (values <= third + reach)
    if reach == 0 or is_shown.all():
        return None, ""
    best = [one.best_point[1] for one in series if one.best_point is not None]
    shown = np.concatenate([values[is_shown], best])
    low, high = float(shown.min()), float(shown.max())
    hidden = [
        _off_scale(some, side, number(extreme(some), percent=percent))
        for some, side, extreme in (
            (values[values > high], "up", np.max),
            (values[values < low], "down", np.min),
        )
        if len(some)
    ]
    if not hidden:
        return None, ""
    margin = 0.06 * (high - low)
    return (low - margin, high + margin), f"Off scale: {' and '.join(hidden)}."


def _off_scale(values: np.ndarray, side: str, extreme: str) -> str:
    return (
        f"1 value ({extreme})" if len(values) == 1 else f"{len(values)} values, {side} to {extreme}"
    )


def _data(
    series: Sequence[Series],
    unit: str,
    width: float,
    limits: tuple[float, float],
    steps_per_epoch: float | None,
    percent: bool = False,
) -> str:
    """Returns the drawn points and the place of the axes as JSON."""
    lines = []
    for one in series:
        x, y = _points(one)
        lines.append({
            "name": one.name,
            "x": [float(f"{value:.6g}") for value in x],
            "y": [float(f"{value:.4g}") if np.isfinite(value) else None for value in y],
        })  # fmt: skip
    place = {
        "unit": unit,
        "left": round(_MARGINS["left"] / width, 4),
        "right": round(1 - _MARGINS["right"] / width, 4),
        "low": limits[0],
        "high": limits[1],
        "stepsPerEpoch": steps_per_epoch,
        "percent": percent,
    }
    return json.dumps(place | {"series": lines}, separators=(",", ":"))


def _svg(draw: Any, description: str, width: float) -> Markup:
    """Returns the SVG element of a chart drawn by `draw(axes)`, with its text alternative."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # characters that only the browser's fonts have
        figure = Figure(figsize=(width, _HEIGHT))
        FigureCanvasSVG(figure)
        figure.subplots_adjust(
            left=_MARGINS["left"] / width,
            right=1 - _MARGINS["right"] / width,
            bottom=_MARGINS["bottom"] / _HEIGHT,
            top=1 - _MARGINS["top"] / _HEIGHT,
        )
        draw(figure.subplots())
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    # Keep only ids that are referenced.
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", rest)
    for color, variable in _VARIABLES.items():
        rest = rest.replace(color, variable)
    head = Markup('<svg class="chart" role="img" aria-label="{}" {}>').format(
        description, Markup(view_box[0])
    )
    return head + Markup(rest.replace("xlink:href", "href").strip())


def _points(one: Series) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most `_MAX_POINTS` points; longer lines are averaged over neighbors."""
    x = np.array(one.x, float)
    y = np.array([np.nan if value is None else value for value in one.y], float)
    y[~np.isfinite(y)] = np.nan
    if len(x) <= _MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MAX_POINTS)
    means = [y[p].mean() if np.isfinite(y[p]).all() else np.nan for p in parts]
    return np.array([x[part].mean() for part in parts]), np.array(means)


def _finite(one: Series) -> list[tuple[float, float]]:
    pairs = zip(one.x, one.y, strict=True)
    return [(x, y) for x, y in pairs if y is not None and np.isfinite(y)]


def _spans_magnitudes(series: Sequence[Series]) -> bool:
    """Returns True if the interquartile range spans more than two orders of magnitude."""
    values = np.concatenate([_points(one)[1] for one in series])
    values = values[np.isfinite(values)]
    if not len(values) or values.min() <= 0:
        return False
    low, high = np.quantile(values, [0.25, 0.75])
    return bool(high > 100 * low)


def _described(one: Series, unit: str, percent: bool) -> str:
    known = _finite(one)
    if not known:
        return f"{one.name}: no finite value."
    values = [y for _, y in known]
    first, last, low, high = (
        number(y, percent=percent) for y in (values[0], values[-1], min(values), max(values))
    )
    best = ""
    if one.best_point is not None:
        x, y = one.best_point
        best = f", {number(y, percent=percent)} at the best checkpoint, {_place(x, unit)}"
    return (
        f"{one.name}: {first} at {known[0][0]:g}, {last} at {known[-1][0]:g}, "
        f"between {low} and {high}{best}."
    )
