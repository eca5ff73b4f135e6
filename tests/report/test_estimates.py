"""The section of the report about predicted numbers."""

import numpy as np
import pytest

from flaxdl.report.charts import histogram_chart, scatter_chart
from flaxdl.report.estimates import Estimates, section

NAN = np.nan


def estimates(label, estimate, **changes):
    label, estimate = np.array(label, float), np.array(estimate, float)
    settings = {
        "step": 3,
        "split": "test",
        "available": len(label),
        "targets": np.array([f"t{k}" for k in range(label.shape[1])]),
        "std": np.ones(label.shape[1]),
        "label": label,
        "estimate": estimate,
        "shown": np.array([1, 0], np.int32),
        "inputs": np.array(["worse", "bad"]),
        "index": np.arange(len(label), dtype=np.int32) + 1000,
        "names": np.zeros(0, np.int32),
    }
    return Estimates(**(settings | changes))


def test_figures_by_hand():
    found = section(estimates([[1, NAN, 5], [3, NAN, 5]], [[2, 0, 5], [6, 0, 6]]))
    assert found.rows == [
        ("t0", ["2", "2.000", "2.236", "-4.000", "2.000"]),  # errors of 1 and 3
        ("t1", ["0", "–", "–", "–", "–"]),
        ("t2", ["2", "0.5000", "0.7071", "–", "0.5000"]),
    ]
    assert [[chart.title for chart in row] for row in found.charts] == [
        ["Predicted over true t0", "Errors of t0"],
        ["Predicted over true t2", "Errors of t2"],
    ]
    worst = found.worst[0]
    assert worst.values == [("t0", "3.000", "6.000"), ("t2", "5.000", "6.000")]
    assert (worst.text, worst.name, worst.label) == (
        "worse",
        "test example 1,001",
        "t0 3.000, t2 5.000",
    )


def test_charts_of_four_targets_and_figures_of_all():
    label = np.random.default_rng(0).normal(size=(30, 7))
    error = np.array([0.1, 0.2, 0.3, 0.4, 5, 5, 6])
    names = np.array([f"{n}.png" for n in range(30)])
    std = np.array([1, 1, 1, 1, 1, 100, 1])
    found = section(estimates(label, label + error, names=names, std=std))
    assert len(found.rows) == 7
    assert len(found.charts) == 4
    assert [name for name, _, _ in found.worst[0].values] == ["t6", "t4", "t3", "t2"]
    assert found.worst[0].name == "1.png"


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9, 1e-6])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_scatter_of_many_values_of_any_size(offset, spread):
    truth = offset + spread * np.random.default_rng(0).normal(size=2000)
    chart = scatter_chart("Predicted over true price", truth, truth)
    assert chart.svg.count("<use") + chart.svg.count("<path") >= 400
    assert chart.note == "500 of the 2,000 examples are drawn."
    correlation = ", with a correlation of 1.000" if spread else ""
    assert chart.description == f"Predicted over true price: 2,000 examples{correlation}."


def test_histogram():
    values = np.concatenate([np.full(90, -1.0), np.full(10, 9.0)])
    chart = histogram_chart("Errors", values)
    assert chart.description == "Errors: median -1.000, 90% between -1.000 and 9.000."
    assert histogram_chart("Errors", np.zeros(1)).svg.startswith("<svg")
    equal = 5 + 1e-15 * np.arange(100)  # up to rounding
    assert "90% between 5.000 and 5.000" in histogram_chart("Errors", equal).description
