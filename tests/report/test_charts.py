"""Charts as SVG: text alternative, colors, axes, legend and the points shown on hover."""

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from flaxdl.report.charts import SMALL_WIDTH, WIDTH, Series, calibration_chart, line_chart, rows_of

STEPS = [10, 20, 30, 40]
LOSS = Series("training", STEPS, [2.0, 1.0, None, math.inf])


def texts(chart):
    elements = ElementTree.fromstring(chart.svg).iter("text")
    return {"".join(element.itertext()).strip() for element in elements}


def y_ticks(chart):
    """The numbers of the y axis, which stand left of the axes."""
    left = 72 * 0.9
    found = []
    for element in ElementTree.fromstring(chart.svg).iter("text"):
        place = re.search(r"translate\(([\d.]+)", element.get("transform", ""))
        x = float(element.get("x") or (place and place[1]) or left)
        text = "".join(element.itertext()).strip().replace("−", "-")
        if x < left and re.fullmatch(r"-?[\d.]+", text):
            found.append(float(text))
    return found


def test_a_chart_has_a_text_alternative():
    chart = line_chart("Loss", [Series("training", STEPS, [2.0, 1.0, None, math.inf], best=20)])
    assert chart.description == (
        "Loss over steps. training: 2.000 at 10, 1.000 at 20, between 1.000 and 2.000, 1.000 at "
        "the best checkpoint, step 20."
    )
    root = ElementTree.fromstring(chart.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == chart.description
    assert "step" in texts(chart)


def test_the_legend_names_the_best_value_and_its_step():
    validation = Series("validation", [6000, 12000], [0.09541, 0.1], best=6000)
    chart = line_chart("Loss", [Series("training", [6000, 12000], [0.2, 0.1]), validation])
    labels = [label for _, label in chart.legend]
    assert labels == ["training", "validation (best checkpoint: 0.09541, step 6,000)"]
    assert "var(--series-2)" in chart.legend[1][0]
    assert "stroke-dasharray" in chart.legend[1][0]  # lines differ by more than color
    assert not any("validation" in text for text in texts(chart))  # no legend over the lines


def test_the_best_checkpoint_is_marked_at_the_nearest_logged_step():
    norm = Series("training", [100, 200, 300], [3.0, 2.0, 1.0], best=210)
    (label,) = [label for _, label in line_chart("Gradient norm", [norm]).legend]
    assert label == "training (best checkpoint: 2.000, step 200)"
    assert Series("training", STEPS, [None] * 4, best=20).best_point is None


def test_colors_are_those_of_the_page():
    svg = str(line_chart("Loss", [LOSS, Series("validation", STEPS, [3, 2, 2, 2])]).svg)
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#0[1-8]0", svg)
    assert "<?xml" not in svg
    assert "http:" not in svg.replace("http://www.w3.org/", "")


def test_ids_refer_only_within_a_chart():
    charts = [line_chart("Loss", [LOSS]), line_chart("Rate", [Series("a", STEPS, [1, 2, 3, 9])])]
    ids = [set(re.findall(r' id="([^"]*)"', str(chart.svg))) for chart in charts]
    for chart, own in zip(charts, ids, strict=True):
        assert set(re.findall(r"url\(#([^)]*)\)", str(chart.svg))) <= own


def test_values_over_orders_of_magnitude_get_a_logarithmic_axis():
    chart = line_chart("Norm", [Series("training", STEPS, [1e-4, 1.0, 1e4, 1e2])])
    assert "0.01" in texts(chart)
    assert not any("$" in text for text in texts(chart))


def test_the_first_loss_does_not_flatten_the_rest():
    steps = list(range(1, 21))
    loss = [9.0, 0.4, *np.linspace(0.2, 0.1, 18)]
    clipped = line_chart("Loss", [Series("training", steps, loss)])
    assert max(y_ticks(clipped)) < 0.5
    assert clipped.note == "Off scale: 1 value (9.000)."
    assert clipped.note in clipped.description
    both = line_chart("Loss", [Series("training", [0, *steps, 21], [-9.0, *loss, 8.0])])
    assert both.note == "Off scale: 2 values, up to 9.000 and 1 value (-9.000)."
    whole = line_chart("Loss", [Series("training", steps, loss)], from_zero=True)
    assert max(y_ticks(whole)) >= 8
    assert min(y_ticks(whole)) == 0
    assert whole.note == ""


def test_fractions_are_in_percent():
    series = [Series("validation", STEPS, [0.5, 0.75, 0.9, 0.8], best=30)]
    chart = line_chart("Accuracy", series, percent=True)
    assert "80.0%" in texts(chart)
    assert chart.legend[0][1] == "validation (best checkpoint: 90.00%, step 30)"
    assert "50.00% at 10" in chart.description
    assert json.loads(chart.data)["percent"] is True


@pytest.mark.parametrize(
    ("values", "tick"),
    [
        ([1e4, 1.5e4], "15,000"),
        ([2e8, 3e8], "3e+08"),
        ([1e-5, 2e-5], "2e\N{MINUS SIGN}05"),
        ([0.99991, 0.99994], "0.999920"),
        ([0.1, 0.2], "0.20"),
    ],
)
def test_no_factor_or_offset_of_an_axis_is_cut_off(values, tick):
    chart = line_chart("Value", [Series("training", [1, 2], values)])
    assert tick in texts(chart)
    axis = "".join(texts(chart))
    assert "+" not in axis.replace("e+08", "")  # as in +9.999e-1 above the axis
    assert "1e−5" not in axis


@pytest.mark.parametrize("steps", [2_000, 120_000, 3_000_000])
def test_numbers_of_long_runs_fit_below_a_small_chart(steps):
    chart = line_chart("Speed", [Series("training", [1, steps], [1, 1])], width=SMALL_WIDTH)
    numbers = [text for text in texts(chart) if "," in text]
    assert 1 <= len(numbers) <= 4
    assert sum(0.09 * len(number) + 0.1 for number in numbers) < SMALL_WIDTH - 0.9


def test_a_line_without_points_keeps_its_color_for_other_charts():
    series = [Series("a", [], []), Series("b", [1.0, 2.0], [1.0, 2.0])]
    chart = line_chart("Validation loss", series, unit="epoch")
    ((swatch, label),) = chart.legend
    assert label == "b"
    assert "var(--series-2)" in swatch
    assert "a:" not in chart.description


def test_a_best_value_among_outliers_stays_visible():
    accuracy = [0.9, *[0.5] * 4, *np.linspace(0.5, 0.52, 15)]
    chart = line_chart("Accuracy", [Series("validation", list(range(20)), accuracy, best=0)])
    assert max(y_ticks(chart)) >= 0.85
    assert chart.note == ""


def test_a_steadily_falling_loss_is_shown_whole():
    steps = list(range(1, 41))
    chart = line_chart("Loss", [Series("training", steps, [3 * 0.93**step for step in steps])])
    assert chart.note == ""


def test_a_long_run_has_as_many_points_as_can_be_seen():
    steps = list(range(1, 100_001))
    chart = line_chart("Loss", [Series("training", steps, [1 / step for step in steps])])
    assert len(chart.svg) < 60_000
    assert len(json.loads(chart.data)["series"][0]["x"]) == 500


def test_nothing_finite_is_still_a_chart():
    chart = line_chart("Loss", [Series("training", STEPS, [None] * 4)])
    assert "no finite value" in chart.description
    assert json.loads(chart.data)["series"][0]["y"] == [None] * 4


def test_the_points_say_where_they_are_drawn():
    series = [LOSS, Series("validation", [20], [1.23456])]
    data = json.loads(line_chart("Loss", series, steps_per_epoch=10).data)
    assert data["series"] == [
        {"name": "training", "x": STEPS, "y": [2.0, 1.0, None, None]},
        {"name": "validation", "x": [20], "y": [1.235]},
    ]
    assert (data["unit"], data["stepsPerEpoch"]) == ("step", 10)
    assert (data["low"], data["high"]) == (0, pytest.approx(1.03 * 40))
    assert (data["left"], data["right"]) == pytest.approx((0.9 / WIDTH, 1 - 0.18 / WIDTH), abs=1e-4)


def test_the_calibration_chart_needs_no_points():
    chart = calibration_chart(np.array([0.55, 0.95]), np.array([0.5, 1.0]), np.array([6, 30]), 0.1)
    assert "of 6 predictions with a confidence of about 55%, 50% are correct" in chart.description
    assert [label for _, label in chart.legend] == ["this run", "perfect calibration"]
    nothing = np.zeros(0)
    assert calibration_chart(nothing, nothing, nothing, 0.1).svg


@pytest.mark.parametrize(
    ("metrics", "details", "sizes"),
    [
        (2, 3, [2, 3]),
        (1, 3, [2, 2]),
        (3, 3, [3, 3]),
        (4, 3, [2, 2, 3]),
        (5, 2, [3, 2, 2]),
        (1, 0, [1]),
    ],
)
def test_rows_have_no_empty_places(metrics, details, sizes):
    chart = line_chart("Loss", [LOSS])
    speed = line_chart("Examples per second", [LOSS], width=SMALL_WIDTH)
    found = rows_of([chart] * metrics, [*[chart] * (details - 1), speed][:details])
    assert [len(row) for row in found] == sizes
    if details:
        assert found[-1][-1] is speed
        assert speed.width < chart.width
