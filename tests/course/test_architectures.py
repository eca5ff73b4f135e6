"""The famous architectures: the rule on both sides, and the counts of the smallest network."""

import copy

import pytest

from flaxdl.course import architectures, record


def test_counts_of_lenet_are_those_of_its_layers(monkeypatch):
    sizes = {"LeNet5": architectures.PUBLISHED["LeNet5"]}
    monkeypatch.setattr(architectures, "PUBLISHED", sizes)
    found = architectures.measure([0], quick=True)["networks"]["LeNet5"]
    convolutions = 6 * (25 + 1), 16 * (6 * 25 + 1)
    linear = [outputs * (inputs + 1) for inputs, outputs in ((400, 120), (120, 84), (84, 10))]
    assert found["parameters"] == sum(convolutions) + sum(linear)
    products = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10
    assert found["multiply_adds"] == products / 1e9


@pytest.mark.parametrize(
    ("name", "quantity", "factor", "outcome"),
    [
        ("ResNet50", "parameters", 1, "exact"),
        ("ResNet50", "parameters", 1 + 1e-7, "does not hold here"),
        ("VGG16", "multiply_adds", 1.009, "exact"),
        ("VGG16", "multiply_adds", 1.011, "does not hold here"),
    ],
)
def test_other_counts_are_not_exact(name, quantity, factor, outcome):
    results = copy.deepcopy(record.read("architectures").results)
    results["networks"][name][quantity] *= factor
    assert architectures.verdict(results).outcome == outcome
