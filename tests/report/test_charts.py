"""Charts as SVG: their words, their colours, and what is in them."""

import math
import re
from xml.etree import ElementTree

from flaxdl.report.charts import Series, line_chart

STEPS = [10, 20, 30, 40]
LOSS = Series("training", STEPS, [2.0, 1.0, None, math.inf])


def elements(chart, tag):
    return list(ElementTree.fromstring(chart.svg).iter(tag))


def test_a_chart_says_in_words_what_it_shows():
    chart = line_chart("Loss", [LOSS], best=(20, "best checkpoint"))
    assert "training: 2 at 10, 1 at 20, between 1 and 2." in chart.words
    root = ElementTree.fromstring(chart.svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == chart.words
    texts = {element.text.strip() for element in elements(chart, "text")}
    assert {"step", "training", "best checkpoint"} <= texts


def test_colours_are_those_of_the_page():
    svg = str(line_chart("Loss", [LOSS, Series("validation", STEPS, [3, 2, 2, 2])]).svg)
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "var(--ink)" in svg
    assert not re.search(r"#0[1-8]0", svg)
    assert "<?xml" not in svg
    assert "http:" not in svg.replace("http://www.w3.org/", "")


def test_two_charts_of_a_page_do_not_refer_into_each_other():
    charts = [line_chart("Loss", [LOSS]), line_chart("Rate", [Series("a", STEPS, [1, 2, 3, 9])])]
    ids = [set(re.findall(r' id="([^"]*)"', str(chart.svg))) for chart in charts]
    for chart, own in zip(charts, ids, strict=True):
        assert set(re.findall(r"url\(#([^)]*)\)", str(chart.svg))) <= own


def test_values_over_orders_of_magnitude_get_a_logarithmic_axis():
    chart = line_chart("Norm", [Series("training", STEPS, [1e-4, 1.0, 1e4, 1e2])])
    texts = [element.text.strip() for element in elements(chart, "text")]
    assert "0.01" in texts
    assert not any("$" in text for text in texts)


def test_a_long_run_has_as_many_points_as_can_be_seen():
    steps = list(range(1, 100_001))
    chart = line_chart("Loss", [Series("training", steps, [1 / step for step in steps])])
    assert len(chart.svg) < 60_000


def test_nothing_finite_is_still_a_chart():
    assert "nothing finite" in line_chart("Loss", [Series("training", STEPS, [None] * 4)]).words
