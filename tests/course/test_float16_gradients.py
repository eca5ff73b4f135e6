"""Gradients in float16: the rule on both sides, and what a scale does to a known gradient."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.course import float16_gradients
from flaxdl.course.float16_gradients import SCALES


def results(before, after, bfloat16=0.0, overflow=0.0):
    """Fractions lost at scale 1 of which a scale of 65,536 saves all, in five seeds."""

    def arm(lost):
        by_scale = {str(scale): [lost if scale == 1 else 0.0, 0.0] for scale in SCALES}
        return [by_scale | {"65536": [0.0, overflow]}] * 5

    fractions = {"before": before, "after": after}
    found = {t: {"float16": arm(x), "bfloat16": arm(bfloat16)} for t, x in fractions.items()}
    return {"lost_and_overflow": found}


@pytest.mark.parametrize(
    ("fractions", "outcome"),
    [
        ({"before": 0.02, "after": 0.02}, "holds"),
        ({"before": 0.009, "after": 0.02}, "holds in part"),
        ({"before": 0.009, "after": 0.009}, "does not hold here"),
        ({"before": 0.2, "after": 0.2, "bfloat16": 0.02}, "does not hold here"),
        ({"before": 0.2, "after": 0.2, "overflow": 0.5}, "does not hold here"),
    ],
)
def test_verdict_on_the_scaler(fractions, outcome):
    assert float16_gradients.verdict(results(**fractions)).outcome == outcome


def test_small_gradients_are_lost_and_large_ones_overflow(monkeypatch):
    monkeypatch.setattr(float16_gradients, "loss_of", lambda params, *_: params["w"] @ exact)
    exact = jnp.array([1e-9, 1e-3, 0.0])
    params = {"w": jnp.ones(3)}
    images = jnp.ones(1)

    def fractions(precision, scale):
        # The gradient is computed in the precision of the parameters.
        return [
            float(x)
            for x in float16_gradients.lost_and_overflow(
                params, images, images, precision, jnp.float32(scale)
            )
        ]

    assert fractions("float16", 1) == [0.5, 0.0]
    assert fractions("float16", 2**14) == [0.0, 0.0]
    assert fractions("float16", 2.0**30) == [0.0, 0.5]
    assert fractions("bfloat16", 1) == [0.0, 0.0]
    np.testing.assert_array_equal(np.float16(1e-9), 0)
