"""The experiment on time series and sounds."""

import flax.linen as nn
import numpy as np
import pytest

from flaxdl.course import series_and_audio
from flaxdl.course.series_and_audio import Splits, make_series
from flaxdl.layers import Linear


class Flat(nn.Module):
    """A linear classifier, which takes less time to compile than the networks do."""

    @nn.compact
    def __call__(self, x, train=False):
        return Linear(3, name="fc")(x[..., 0])


def orders(cnn=0.9, rnn=0.9, mlp=0.8, cnn_permuted=0.8, rnn_permuted=0.8, mlp_permuted=0.8):
    as_is = {"CNN": cnn, "RNN": rnn, "MLP": mlp}
    permuted = {"CNN": cnn_permuted, "RNN": rnn_permuted, "MLP": mlp_permuted}
    both = {"as is": as_is, "permuted": permuted}
    return {order: {name: [a] * 5 for name, a in of.items()} for order, of in both.items()}


@pytest.mark.parametrize(
    ("series", "sounds", "outcome"),
    [
        ({}, {}, "holds"),
        ({}, {"cnn": 0.5}, "holds"),  # the claim does not name it
        ({"rnn": 0.851}, {}, "holds"),
        ({"rnn": 0.849}, {}, "holds in part"),  # not better by the margin
        ({"cnn_permuted": 0.851}, {}, "holds in part"),  # not hurt, and still better
        ({}, {"rnn": 0.96, "rnn_permuted": 0.86}, "holds in part"),  # still better if permuted
        ({"mlp_permuted": 0.74}, {"rnn": 0.8}, "does not hold here"),  # the MLP is hurt, too
    ],
)
def test_verdict_on_series_and_sounds(series, sounds, outcome):
    accuracy = {"series": orders(**series), "sounds": orders(**sounds)}
    assert series_and_audio.verdict({"accuracy": accuracy}).outcome == outcome


def test_a_bell_rises_and_ends_and_a_funnel_starts_high_and_falls():
    series, label = make_series(3000, seed=0)
    np.testing.assert_array_equal(np.bincount(label), 1000)
    steepest_fall, steepest_rise = [], []
    for kind in range(3):
        steps = np.diff(series[label == kind, :, 0], axis=1)
        steepest_fall.append(steps.min(1).mean())
        steepest_rise.append(steps.max(1).mean())
    plateau, bell, funnel = steepest_rise
    assert bell < plateau - 0.5 < funnel + 0.5
    plateau, bell, funnel = steepest_fall
    assert funnel > plateau + 0.5 > bell - 0.5


def test_measure_tunes_each_model_for_each_order(monkeypatch):
    splits = Splits(*(make_series(32, seed) for seed in range(3)))
    monkeypatch.setattr(series_and_audio, "TASKS", {"series": lambda: splits})
    monkeypatch.setattr(series_and_audio, "MODELS", {"MLP": Flat()})
    monkeypatch.setattr(series_and_audio, "RATES", (1e-3, 1e-2))
    results = series_and_audio.measure([0, 1], quick=True)
    for order in series_and_audio.ORDERS:
        assert len(results["accuracy"]["series"][order]["MLP"]) == 2
        assert results["learning_rates"]["series"][order]["MLP"] == 1e-2
    assert np.shape(results["examples"]) == (3, series_and_audio.STEPS)
