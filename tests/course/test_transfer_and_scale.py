"""Experiments on pretraining, scale and other inputs: rules on both sides, mechanisms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.course import (
    adaptive_pooling,
    decoupled_decay,
    last_layers,
    pretrained_digits,
    scaling,
    transfer,
)
from flaxdl.course.training import Splits

# transfer


def transferred(pretrained, scratch=0.5):
    """Results: ratios of the accuracy with 1 % of the images, for each target."""
    return {
        target: {
            "accuracy": {
                "from scratch": [[scratch * 0.8] * 5, [0.8] * 5],
                "pretrained": [[ratio * 0.8] * 5, [0.8] * 5],
            }
        }
        for target, ratio in zip(transfer.TARGETS, pretrained, strict=True)
    }


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (transferred((0.91, 0.91)), "holds"),
        (transferred((0.89, 0.91)), "holds in part"),
        (transferred((0.89, 0.89)), "does not hold here"),
        (transferred((0.95, 0.95), scratch=0.91), "does not hold here"),  # the control
    ],
)
def test_verdict_on_transfer(results, outcome):
    assert transfer.verdict(results).outcome == outcome


def test_the_first_images_are_of_all_classes():
    labels = np.repeat(np.arange(10), 7)
    order = pretrained_digits.balanced_order(labels, 0)
    assert sorted(order) == list(range(70))
    assert (np.bincount(labels[order[:20]]) == 2).all()


def test_transfer_runs_with_few_images_and_freezes_stages(monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((40, 8, 8)).astype("f4")
    data = (images, np.repeat(np.arange(10), 4).astype("i4"))
    monkeypatch.setattr(pretrained_digits, "load_glyphs", lambda: (data, Splits(data, data, data)))
    monkeypatch.setattr(pretrained_digits, "FRACTIONS", (0.5,))
    monkeypatch.setattr(pretrained_digits, "RATES", (1e-2,))
    params = pretrained_digits.CNN(classes=52).init(jax.random.key(0), images[:1])["params"]
    pretrained: dict = dict.fromkeys((100, 101, 3), params)
    arms = {"all": (True, pretrained_digits.STAGES), "none": (True, ())}
    found = pretrained_digits.compare("printed digits", arms, pretrained, (3,), 40)["accuracy"]
    assert found["all"][0][0] > 0.4 > found["none"][0][0]


# last_layers


@pytest.mark.parametrize(
    ("last", "control", "outcome"),
    [
        ((0.88, 0.88, 0.88, 0.88), 0.87, "holds"),
        ((0.88, 0.88, 0.88, 0.87), 0.87, "holds in part"),
        ((0.88, 0.87, 0.88, 0.88), 0.87, "does not hold here"),
        ((0.88, 0.88, 0.88, 0.88), 0.89, "does not hold here"),  # the control
    ],
)
def test_verdict_on_last_layers(last, control, outcome):
    accuracy = {arm: [[0.9] * 5] * 4 for arm in last_layers.ARMS}
    accuracy[last_layers.LAST] = [[value + 0.001] * 5 for value in last]
    accuracy[last_layers.CONTROL] = [[control] * 5] * 4
    assert last_layers.verdict({"accuracy": accuracy}).outcome == outcome


# adaptive_pooling


def test_only_adaptive_pooling_accepts_other_sizes(monkeypatch):
    monkeypatch.setattr(adaptive_pooling, "SHAPES", (3, 4, 12, 31, 32, 33, 48))
    assert adaptive_pooling.accepted(adaptive_pooling.CNN()) == [4, 12, 31, 32, 33, 48]
    assert adaptive_pooling.accepted(adaptive_pooling.CNN(adaptive=False)) == [32, 33]


@pytest.mark.parametrize(
    ("lost", "adaptive", "control", "outcome"),
    [
        (0.04, range(4, 65), [32], "holds"),
        (0.06, range(4, 65), [32], "holds in part"),
        (0.04, range(25, 65), [32], "does not hold here"),
        (0.04, range(4, 65), [24, 32], "does not hold here"),  # the control
    ],
)
def test_verdict_on_sizes(lost, adaptive, control, outcome):
    sizes = list(adaptive_pooling.SIZES)
    accuracy = [[0.95] * 5 for _ in sizes]
    accuracy[sizes.index(48)] = [0.95 - lost] * 5
    results = {
        "accepted": {"adaptive": list(adaptive), "control": control},
        "accuracy": {"as it is": accuracy},
        "sizes": sizes,
    }
    assert adaptive_pooling.verdict(results).outcome == outcome
    results["accuracy"]["as it is"] = [[0.89] * 5 for _ in sizes]
    assert adaptive_pooling.verdict(results).outcome == "does not hold here"


# decoupled_decay


def test_only_adam_divides_the_decay():
    updates = {}
    for arm in decoupled_decay.ARMS:
        chain = decoupled_decay.optimizer(arm, jnp.asarray(0.5), jnp.asarray(0.1), 10)
        weights, gradients = jnp.asarray([2.0, 2.0]), jnp.asarray([1.0, 100.0])
        updates[arm] = chain.update(gradients, chain.init(weights), weights)[0]
    np.testing.assert_allclose(updates["Adam"], [-0.1, -0.1], rtol=1e-5)
    np.testing.assert_allclose(updates["AdamW"], [-0.1 - 0.1 * 0.5 * 2] * 2, rtol=1e-5)


def decayed(best, other, without=0.0):
    """Results: gains of AdamW at the best rate, at another one, and without decay."""
    decays, rates = len(decoupled_decay.DECAYS), len(decoupled_decay.RATES)
    accuracy = {arm: np.full((decays, rates, 5), 0.9) for arm in decoupled_decay.ARMS}
    accuracy["AdamW"][2, 1] += best
    accuracy["AdamW"][2, 0] += other
    accuracy["AdamW"][0] += without
    return {
        "accuracy": {arm: values.tolist() for arm, values in accuracy.items()},
        "decays": {"Adam": [1] * rates, "AdamW": [2] * rates},
        "rates": {"Adam": 2, "AdamW": 1},
    }


@pytest.mark.parametrize(
    ("results", "outcome"),
    [
        (decayed(0.011, 0.0), "holds"),
        (decayed(0.009, 0.011), "holds in part"),
        (decayed(0.009, 0.009), "does not hold here"),
        (decayed(0.011, 0.011, without=0.02), "does not hold here"),  # the control
    ],
)
def test_verdict_on_decay(results, outcome):
    assert decoupled_decay.verdict(results).outcome == outcome


# scaling


def test_a_decoder_does_not_see_the_next_letters():
    tokens = jax.random.randint(jax.random.key(0), (1, scaling.LENGTH), 0, 29)
    pair = jnp.concatenate([tokens, tokens.at[0, 9].set((tokens[0, 9] + 1) % 29)])
    init = jax.jit(scaling.Decoder(4).init_with_output)
    (logits, changed), _ = init(jax.random.key(1), pair)
    np.testing.assert_allclose(logits[:9], changed[:9], atol=1e-6)
    assert abs(logits[9] - changed[9]).max() > 1e-3


@pytest.mark.parametrize(
    ("data", "width", "control", "outcome"),
    [
        ((0.06, 0.06), (0.06, 0.06), 0.04, "holds"),
        ((0.06, 0.04), (0.06, 0.06), 0.04, "holds in part"),
        ((0.06, 0.06), (0.04, 0.06), 0.04, "holds in part"),
        ((0.06, 0.04), (0.04, 0.06), 0.04, "does not hold here"),
        ((0.06, 0.06), (0.06, 0.06), 0.06, "does not hold here"),  # the control
    ],
)
def test_verdict_on_scaling(data, width, control, outcome):
    small, medium, large = scaling.WIDTHS
    losses = {
        str(small): [[2 + sum(width)] * 5],
        str(medium): [[2 + width[1]] * 5],
        str(large): [[2 + sum(data)] * 5, [2 + data[1]] * 5, [2.0] * 5],
    }
    results = {"losses": losses, "control": [[3 + control] * 5, [3.0] * 5]}
    assert scaling.verdict(results).outcome == outcome
