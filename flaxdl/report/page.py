"""The page of a report: what it shows of a run, and how that becomes HTML.

All texts are escaped where they enter the page, whatever they are.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flaxdl.report.charts import Chart
from flaxdl.report.scores import ClassScore

MOST_CLASSES = 40  # in a confusion matrix, and in the table of classes


@dataclass(frozen=True)
class Mistake:
    """An example that was answered wrongly."""

    label: str
    answer: str
    confidence: float
    picture: str | None = None
    """As a data URI, where the input is a picture."""
    text: str | None = None


@dataclass(frozen=True)
class Classes:
    """How a classifier's answers on a split are spread over the classes."""

    split: str
    answered: int
    available: int
    names: Sequence[str]
    confusion: np.ndarray | None
    """None where there are too many classes to draw."""
    confused: Sequence[tuple[str, str, int]]
    scores: Sequence[ClassScore]
    """The worst ones, where there are too many."""
    calibration: Chart
    calibration_error: float
    mistakes: Sequence[Mistake]
    wrong: int
    """How many answers are wrong."""


@dataclass(frozen=True)
class Sample:
    """A text that was written."""

    item: str
    text: str
    expected: str | None = None


@dataclass(frozen=True)
class Frozen:
    """What a run took over, and what of it stayed as it was."""

    source: str | None
    """Where the first weights came from."""
    omitted: Sequence[str]
    patterns: Sequence[str]
    epochs: float | None
    """After how many epochs everything was trained, if ever."""
    names: Sequence[str]
    count: int
    """How many parameters are frozen."""


@dataclass(frozen=True)
class RunPage:
    """A run, as the report shows it."""

    name: str
    model: str
    parameters: int
    results: dict[str, str]
    """Figures at the top, by what they are."""
    charts: Sequence[Chart]
    settings: dict[str, str]
    versions: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)
    devices: str | None = None
    classes: Classes | None = None
    samples: Sequence[Sample] = ()
    samples_note: str = ""
    frozen: Frozen | None = None
    missing: str | None = None
    """Why there are no answers, where there should be some."""


def render(
    runs: Sequence[RunPage], *, compared: Sequence[Chart] = (), differing: Sequence[Any] = ()
) -> str:
    """The whole page, which needs nothing but itself.

    Args:
        runs: one run, or several.
        compared: charts of several runs together.
        differing: settings in which several runs differ, each with a value for each run.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = lambda value: "–" if value is None else f"{value:.1%}"
    environment.filters["duration"] = duration
    template = environment.get_template("report.html.jinja")
    return template.render(
        runs=runs, compared=compared, differing=differing, most_classes=MOST_CLASSES
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.4 s`, `52 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def data_uri(picture: np.ndarray) -> str:
    """A picture, uint8 [H, W] or [H, W, 3], as a PNG inside an address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
