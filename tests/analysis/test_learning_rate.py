"""The learning-rate range test."""

import numpy as np
import pytest
from helpers.small_runs import small_config
from PIL import Image

from flaxdl.analysis.learning_rate import HIGHEST, LOWEST, LearningRateCurve, find_learning_rate
from flaxdl.models import ResNet
from flaxdl.training import SGD


def test_a_sweep_climbs_by_equal_factors_and_stops_when_the_loss_explodes(tmp_path):
    found = find_learning_rate(small_config(optimizer=SGD(learning_rate=123.0)), steps=40)
    rates = found.learning_rates
    assert rates[0] == pytest.approx(LOWEST, rel=1e-5)
    assert np.diff(np.log(rates)) == pytest.approx(np.log(HIGHEST / LOWEST) / 39, rel=1e-3)
    assert len(rates) < 40  # SGD with momentum does not bear a learning rate of ten
    assert 1e-4 < found.steepest < 1
    picture = found.draw(tmp_path / "new")
    with Image.open(picture) as image:
        assert image.size == (840, 480)


def test_the_first_scales_of_float16_are_no_divergence():
    """Gradients times 65,536 overflow: such a step is skipped, and the scale is halved."""
    config = small_config(
        model=ResNet(num_classes=4, depths=(1, 1, 1, 1)),
        precision="float16",
        optimizer=SGD(learning_rate=1.0),
    )
    assert len(find_learning_rate(config, steps=12).losses) >= 8


def test_the_steepest_descent_is_where_the_loss_falls_fastest():
    rates = np.geomspace(1e-6, 1, 61)
    losses = 3 - 2 / (1 + np.exp(-4 * (np.log10(rates) + 3)))  # steepest at 1e-3
    losses[rates > 0.1] = 20
    curve = LearningRateCurve(rates, losses)
    assert curve.steepest == pytest.approx(1e-3, rel=0.3)
    assert 1e-3 < 10 * curve.tenth_of_minimum < 0.1  # before the loss explodes


def test_a_loss_that_only_rises_gives_the_lowest_rate():
    curve = LearningRateCurve(np.geomspace(1e-6, 1, 20), np.linspace(1, 6, 20))
    assert curve.steepest == pytest.approx(1e-6)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    curve = LearningRateCurve(np.geomspace(1e-6, 1, 5), np.arange(5.0, 0, -1))
    with pytest.raises(ValueError, match="learning_rate.png cannot be written"):
        curve.draw(tmp_path / "file")
