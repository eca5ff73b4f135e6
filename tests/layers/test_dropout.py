"""Dropout keeps the expected value in training and everything in inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.layers import Dropout

ONES = jnp.ones((200, 500))


def drop(rate, inputs, *, seed=0):
    return Dropout(rate).apply({}, inputs, train=True, rngs={"dropout": jax.random.key(seed)})


def test_inference_returns_the_inputs():
    assert Dropout(0.9).apply({}, ONES) is ONES


def test_training_drops_the_share_and_scales_the_rest():
    outputs = np.asarray(drop(0.2, ONES))
    assert set(np.unique(outputs)) == {0, np.float32(1.25)}
    # The deviation of the share of 100,000 is sqrt(0.2 * 0.8 / 100,000) = 0.0013.
    assert np.mean(outputs == 0) == pytest.approx(0.2, abs=0.006)


def test_the_key_decides():
    np.testing.assert_array_equal(drop(0.5, ONES), drop(0.5, ONES))
    assert (drop(0.5, ONES) != drop(0.5, ONES, seed=1)).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_stays_in_the_dtype_it_is_given(dtype):
    with jax.enable_x64(True):
        assert drop(0.5, ONES.astype(dtype)).dtype == dtype


def test_the_ends_of_the_range():
    assert drop(0.0, ONES) is ONES
    assert not drop(1.0, ONES).any()


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_refuses_other_rates(rate):
    with pytest.raises(ValueError, match="dropout rate must be between 0 and 1"):
        drop(rate, ONES)
