"""The course's residual block against PyTorch, stored and live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers.image_parity import (
    assert_live_parity,
    channels_first,
    reference_images,
    variable_shapes,
)
from helpers.parity import assert_close, names_and_shapes, reference_variables

from flaxdl.layers import ResidualBlock
from flaxdl.weights import state_dict

IMAGES = reference_images("image", (4, 8, 9, 9))


def test_has_the_names_of_pytorch():
    assert (
        names_and_shapes(variable_shapes(ResidualBlock(8), IMAGES.shape))
        == (reference.STATE_DICTS["ResidualBlock"])
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-7), ("float32", 1e-5), ("bfloat16", 3e-2)]
)
def test_reaches_the_stored_values(dtype, tolerance):
    with jax.enable_x64(True):
        block, images = ResidualBlock(8), jnp.asarray(IMAGES, dtype)
        variables = reference_variables(block, "ResidualBlock", dtype, images)
        evaluation = block.apply(variables, images)
        training, updates = block.apply(variables, images, train=True, mutable=["batch_stats"])
        assert evaluation.dtype == training.dtype == dtype
    golden = reference.golden_with_prefix("ResidualBlock/")
    assert_close(channels_first(evaluation), golden["evaluation"], tolerance)
    assert_close(channels_first(training), golden["training"], tolerance)
    for key, value in state_dict(updates).items():
        if not key.endswith("num_batches_tracked"):
            assert_close(value, golden[f"after:{key}"], tolerance)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (3, 1, 1, 6)])
def test_equals_pytorch(shape, train):
    nn = pytest.importorskip("torch").nn
    channels = shape[1]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
            )

        def forward(self, x):
            return nn.functional.relu(self.block(x) + x)

    inputs = np.random.default_rng(0).standard_normal(shape)
    assert_live_parity(ResidualBlock(channels), Block(), inputs, train=train)


def test_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match=r"inputs must have shape .*C=8\], got \[2, 5, 5, 3\]"):
        ResidualBlock(8).init(jax.random.key(0), jnp.ones((2, 5, 5, 3)))
