"""SimpleCNN against the course's, stored and live, and properties required of every model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers.image_parity import (
    assert_live_parity,
    count_parameters,
    reference_images,
    reference_logits,
    variable_shapes,
)
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace, overfit
from helpers.parity import assert_close, names_and_shapes
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.models import SimpleCNN

SHAPES = [(4, 3, 32, 32), (2, 3, 37, 50), (2, 3, 8, 8)]
IMAGES = jax.random.normal(jax.random.key(3), (8, 12, 9, 3))


def test_has_the_names_of_pytorch():
    shapes = variable_shapes(SimpleCNN(), (1, 32, 32, 3))
    assert names_and_shapes(shapes) == reference.STATE_DICTS["SimpleCNN"]
    assert count_parameters(SimpleCNN(), (1, 32, 32, 3)) == 620_362


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-7), pytest.param("float32", 1e-5, marks=pytest.mark.quick), ("bfloat16", 3e-2)],
)
def test_reaches_the_stored_values(shape, dtype, tolerance):
    with jax.enable_x64(True):
        logits = reference_logits(SimpleCNN(), "SimpleCNN", reference_images("image", shape), dtype)
    golden = reference.golden(f"SimpleCNN/logits_{shape[2]}x{shape[3]}")
    assert_close(logits, golden, tolerance)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(4, 24), st.integers(4, 24), st.integers(1, 4), st.integers(1, 5))
def test_equals_pytorch(height, width, channels, num_classes):
    nn = pytest.importorskip("torch").nn

    class CNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(channels, 32, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 64, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(64, 128, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d((4, 4)),
            )
            self.classifier = nn.Sequential(
                nn.Flatten(),
                nn.Linear(2048, 256),
                nn.ReLU(),
                nn.Dropout(0.0),
                nn.Linear(256, num_classes),
            )

        def forward(self, x):
            return self.classifier(self.features(x))

    inputs = np.random.default_rng(0).standard_normal((2, channels, height, width))
    assert_live_parity(SimpleCNN(num_classes, dropout=0.0), CNN(), inputs, train=True)


def test_learns():
    assert_every_parameter_learns(SimpleCNN(), IMAGES)
    assert overfit(SimpleCNN(), IMAGES, jnp.arange(8), steps=60, learning_rate=2e-3) == 1


def test_traces_once():
    assert_no_second_trace(SimpleCNN(), IMAGES)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((32, 32, 3), r"images must have shape \[B, H, W, C\], got \[32, 32, 3\]"),
        ((1, 3, 32, 3), "images must be at least 4 x 4, got 3 x 32"),
        ((1, 32, 32, 1), r"inputs of features.0 must have shape .*C=3\], got \[1, 32, 32, 1\]"),
    ],
)
def test_refuses_other_images(shape, message):
    variables = SimpleCNN().init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=message):
        SimpleCNN().apply(variables, jnp.ones(shape))
