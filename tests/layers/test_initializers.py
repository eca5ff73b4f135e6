"""The initializers draw from the distributions that PyTorch's documentation gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.layers import initializers

SHAPE = (3, 3, 16, 64)  # [H, W, inputs per group, outputs]
FAN_IN, FAN_OUT = 9 * 16, 9 * 64


@pytest.mark.parametrize(
    ("initializer", "bound"),
    [
        (initializers.kaiming_uniform, 1 / np.sqrt(FAN_IN)),
        (initializers.xavier_uniform, np.sqrt(6 / (FAN_IN + FAN_OUT))),
        (initializers.uniform(0.3), 0.3),
    ],
)
def test_uniform(initializer, bound):
    values = np.asarray(initializer(jax.random.key(0), SHAPE, jnp.float32))
    assert np.abs(values).max() == pytest.approx(bound, rel=0.01)
    assert np.abs(values).max() <= bound
    assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        (initializers.kaiming_normal, np.sqrt(2 / FAN_OUT)),
        (initializers.normal(0.02), 0.02),
    ],
)
def test_normal(initializer, deviation):
    values = np.asarray(initializer(jax.random.key(0), SHAPE, jnp.float32))
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert abs(values.mean()) < deviation / 50
    assert np.abs(values).max() > 3 * deviation  # not truncated


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 6)])
def test_fans_are_those_of_pytorch(shape):
    torch = pytest.importorskip("torch")
    weight = torch.empty(shape[-1], shape[-2], *shape[:-2])
    theirs = torch.nn.init._calculate_fan_in_and_fan_out(weight)
    assert (initializers.fan_in(shape), initializers.fan_out(shape)) == theirs
