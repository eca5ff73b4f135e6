"""Experiments on filters, pooling and the features of CNNs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.course import sliding_filters, strongest_activation
from flaxdl.course.training import Splits

# sliding_filters


def shift_results(cost=100.0, cnn=0.3, mlp=0.1, mlp_trained_on_shifts=0.8):
    """Results of five seeds: costs relative to the CNN, and accuracies after a shift."""
    costs = [{"parameters": factor, "multiply_adds": factor} for factor in (cost, 1.0, 1.0)]
    names = "dense", "MLP of 256 units", "CNN"
    after = {"centered": {"MLP": mlp}, "shifted": {"MLP": mlp_trained_on_shifts}}
    accuracy = {
        trained: {
            name: dict.fromkeys("013", [0.9] * 5) | {"2": [of.get(name, cnn)] * 5}
            for name in sliding_filters.MODELS
        }
        for trained, of in after.items()
    }
    accuracy["shifted"]["CNN"]["2"] = [0.85] * 5
    costs = [dict(zip(names, costs, strict=True))] * len(sliding_filters.SIDES)
    return {"costs": costs, "accuracy": accuracy}


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "holds"),
        ({"cost": 99.0}, "holds in part"),
        ({"mlp": 0.21}, "holds in part"),  # nine points more than the CNN
        ({"cost": 99.0, "mlp": 0.21}, "does not hold here"),
        ({"mlp_trained_on_shifts": 0.74}, "does not hold here"),  # hurt by a shift it has learned
    ],
)
def test_verdict_on_sliding_filters(changes, outcome):
    assert sliding_filters.verdict(shift_results(**changes)).outcome == outcome


def test_costs_of_full_connections_are_products_of_widths():
    found = sliding_filters.costs(8)
    widths = 3 * 64, 32 * 64, 64 * 16, 128 * 4, 256, 10
    products = sum(a * b for a, b in itertools.pairwise(widths))
    dense = {"parameters": products + sum(widths[1:]), "multiply_adds": products}
    assert found["same units, fully connected"] == dense
    assert found["CNN"]["parameters"] == 620_362


def test_digits_are_shifted_down_and_to_the_right():
    digit, label = np.ones((1, 8, 8)), np.array([3])
    digit[0, 2, 5] = 7
    images, labels = sliding_filters.placed((digit, label), [(0, 0), (2, -3)])
    assert images.shape == (2, 16, 16)
    assert labels.tolist() == [3, 3]
    assert [np.argwhere(image == 7).tolist() for image in images] == [[[6, 9]], [[8, 6]]]
    assert set(images.flat) == {1, 7}


def test_sliding_filters_are_measured(monkeypatch):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 8, 8)).astype("f4"), np.arange(8, dtype="i4")
    monkeypatch.setattr(sliding_filters, "load_digits", lambda: Splits(data, data, data))
    monkeypatch.setattr(sliding_filters, "SIDES", (8,))
    monkeypatch.setattr(sliding_filters, "TRAINED", ("centered",))
    monkeypatch.setattr(sliding_filters, "MODELS", {"MLP": sliding_filters.Dense((2,))})
    monkeypatch.setattr(sliding_filters, "draw_batches", lambda *_: jnp.zeros((1, 2), "i4"))
    results = sliding_filters.measure(range(5), quick=True)
    accuracy = results["accuracy"]["centered"]["MLP"]
    assert {shift: len(of) for shift, of in accuracy.items()} == dict.fromkeys("0123", 5)


def test_sliding_filters_are_drawn():
    left, right = sliding_filters.draw(shift_results()).axes
    assert (len(left.lines), len(right.lines)) == (7, 7)


# strongest_activation


def pooling_results(same):
    """Results of five seeds: predictions that stay the same by pooling, for shifts 0 to 4."""
    values = {pool: [[1.0, one, one, one, four]] * 5 for pool, (one, four) in same.items()}
    return {"same": values, "accuracy": dict.fromkeys(same, [0.9] * 5)}


@pytest.mark.parametrize(
    ("average", "stride", "outcome"),
    [
        ((0.64, 1.0), (0.64, 1.0), "holds"),
        ((0.66, 1.0), (0.64, 1.0), "holds in part"),
        ((0.64, 1.0), (0.66, 1.0), "does not hold here"),
        ((0.64, 1.0), (0.4, 0.94), "does not hold here"),  # the control differs
    ],
)
def test_verdict_on_the_strongest_activation(average, stride, outcome):
    results = pooling_results({"max": (0.7, 1.0), "average": average, "stride": stride})
    assert strongest_activation.verdict(results).outcome == outcome
    assert len(strongest_activation.draw(results).axes[1].lines) == 3


@pytest.mark.parametrize(("pool", "period"), [("max", 4), ("average", 2), ("stride", 4)])
def test_a_shift_by_the_strides_changes_nothing(pool, period):
    network = strongest_activation.Network(pool)
    images = jax.random.normal(jax.random.key(0), (6, 12, 12))
    variables = jax.vmap(network.init, (0, None))(jax.random.split(jax.random.key(1), 1), images)
    for shift in (1, 2, 4):
        same, change = strongest_activation.effects(network, variables, images, shift)
        assert (change[0] < 1e-5) == (shift % period == 0)
        assert same[0] == 1 or shift % period


def test_the_effects_of_pooling_are_measured(monkeypatch):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 8, 8)).astype("f4"), np.arange(8, dtype="i4")
    monkeypatch.setattr(strongest_activation, "load_digits", lambda: Splits(data, data, data))
    monkeypatch.setattr(strongest_activation, "POOLS", {"max": lambda x: x[:, :1, :1]})
    monkeypatch.setattr(strongest_activation, "draw_batches", lambda *_: jnp.zeros((1, 2), "i4"))
    results = strongest_activation.measure(range(5), quick=True)
    assert np.shape(results["same"]["max"]) == (5, 5)
    assert {seed[0] for seed in results["same"]["max"]} == {1}
