"""LeNet-5: the paper's number of parameters, and PyTorch's values for the same layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_parity import assert_live_parity, count_parameters
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace, overfit
from helpers.parity import assert_close

from flaxdl.models import LeNet5

IMAGES = jax.random.normal(jax.random.key(3), (8, 32, 32, 1))


def test_has_the_parameters_of_the_paper():
    # conv1 156, conv2 2,416, fc1 48,120, fc2 10,164, fc3 850
    assert count_parameters(LeNet5(), (1, 32, 32, 1)) == 61_706


@pytest.mark.parametrize("size", [32, 17])
def test_equals_pytorch(size):
    torch = pytest.importorskip("torch")
    nn, functional = torch.nn, torch.nn.functional

    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(2, 6, 5)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(400 if size == 32 else 16, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 7)

        def forward(self, x):
            x = functional.avg_pool2d(self.squash(self.conv1(x)), 2)
            x = functional.avg_pool2d(self.squash(self.conv2(x)), 2)
            x = self.squash(self.fc1(x.flatten(1)))
            return self.fc3(self.squash(self.fc2(x)))

        def squash(self, x):
            return 1.7159 * torch.tanh(2 / 3 * x)

    inputs = np.random.default_rng(0).standard_normal((2, 2, size, size))
    assert_live_parity(LeNet5(7), LeNet(), inputs, train=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_computes_in_the_dtype_it_is_given(dtype, tolerance):
    with jax.enable_x64(True):
        variables = LeNet5().init(jax.random.key(0), IMAGES)
        exact = LeNet5().apply(variables, IMAGES.astype(jnp.float64))
        assert exact.dtype == jnp.float64
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
        logits = LeNet5().apply(cast, IMAGES.astype(dtype))
    assert logits.dtype == dtype
    assert_close(logits, exact, tolerance)


def test_learns():
    assert_every_parameter_learns(LeNet5(), IMAGES)
    assert overfit(LeNet5(), IMAGES, jnp.arange(8), steps=60, learning_rate=3e-3) == 1


def test_traces_once():
    assert_no_second_trace(LeNet5(), IMAGES)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 15, 32, 1), "images must be at least 16 x 16, got 15 x 32"),
        ((1, 28, 28, 1), r"inputs of fc1 must have shape .*I=400\], got \[1, 256\]"),
        ((1, 32, 32, 3), r"inputs of conv1 must have shape .*C=1\], got \[1, 32, 32, 3\]"),
    ],
)
def test_refuses_other_images(shape, message):
    variables = LeNet5().init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=message):
        LeNet5().apply(variables, jnp.ones(shape))
