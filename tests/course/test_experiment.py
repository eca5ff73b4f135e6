"""Rules for verdicts on both sides of their bounds, and the choice of learning rates."""

import math

import numpy as np
import pytest

from flaxdl import UserError
from flaxdl.course.experiment import (
    best_rate,
    draw_range,
    is_larger,
    load_experiment,
    make_figure,
    save_figure,
)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.1, 0.3, 0.2, 0.4, 0.2], True),  # the median is the margin
        ([0.1, 0.3, 0.199, 0.4, 0.1], False),
        ([0.0, 0.3, 0.3, 0.4, 0.2], False),  # not the same sign in all seeds
        ([-0.1, 0.3, 0.3, 0.4, 0.2], False),
    ],
)
def test_larger_needs_the_same_sign_and_the_margin(differences, expected):
    assert is_larger(differences, margin=0.2) is expected


def test_a_rule_refuses_too_few_seeds():
    with pytest.raises(ValueError, match="at least 5 paired differences are needed, got 4"):
        is_larger([1.0] * 4, 0.1)


def test_the_best_rate_has_the_lowest_mean_loss():
    losses = {0.1: [0.2, 0.2], 0.3: [0.1, 0.2], 1.0: [0.05, math.nan], 3.0: [math.inf, 0.0]}
    assert best_rate(losses) == 0.3
    with pytest.raises(ValueError, match="no learning rate has finite losses"):
        best_rate({1.0: [math.nan]})


def test_an_unknown_experiment_is_named():
    with pytest.raises(
        UserError, match="no experiment 'rnn_gradient'; did you mean 'rnn_gradients'"
    ):
        load_experiment("rnn_gradient")


def draw():
    figure = make_figure(2)
    draw_range(figure.axes[0], [1, 2], [[1, 2], [3, 4], [2, 9]], "median and range")
    figure.axes[0].legend()
    return figure


def test_figures_take_the_color_of_the_page_and_are_reproducible(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_figure(draw, tmp_path / name / "figure.svg")
    text = (tmp_path / "a" / "figure.svg").read_text()
    assert text == (tmp_path / "b" / "figure.svg").read_text()
    assert "currentColor" in text
    assert "median and range" in text
    assert "#ffffff" not in text


def test_the_median_is_drawn():
    (line,) = draw().axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [2, 4])
