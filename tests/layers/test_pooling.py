"""Pooling against PyTorch's, in one to three dimensions, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_parity import LIVE_TOLERANCE, channels_first, channels_last
from helpers.parity import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.layers import adaptive_avg_pool, adaptive_max_pool, avg_pool, max_pool
from flaxdl.ops import reference
from flaxdl.ops.batch_norm import batch_norm

KINDS = {"max": (max_pool, adaptive_max_pool), "avg": (avg_pool, adaptive_avg_pool)}


def assert_same(ours, theirs, inputs):
    """Values and the gradient of both functions of [B, C, *spatial] agree."""
    import torch

    torch_inputs = torch.tensor(inputs, requires_grad=True)
    their_outputs = theirs(torch_inputs)
    cotangent = np.random.default_rng(1).standard_normal(tuple(their_outputs.shape))
    their_outputs.backward(torch.tensor(cotangent))
    with jax.enable_x64(True):

        def loss(x):
            outputs = ours(x)
            return jnp.sum(outputs * channels_last(cotangent)), outputs

        x = jnp.asarray(channels_last(inputs))
        gradient, outputs = jax.jit(jax.grad(loss, has_aux=True))(x)
    assert outputs.dtype == np.float64
    assert_close(channels_first(outputs), their_outputs.detach().numpy(), LIVE_TOLERANCE)
    assert_close(channels_first(gradient), torch_inputs.grad.numpy(), LIVE_TOLERANCE)


def whole_numbers(shape):
    """Few different values, so that windows have several equal maxima."""
    return np.random.default_rng(0).integers(-2, 3, shape).astype(np.float64)


@st.composite
def windows(draw):
    """Window, stride, padding and inputs [B, C, *spatial] that the window fits into."""
    dimensions = draw(st.integers(1, 3))
    window = tuple(draw(st.integers(1, 4)) for _ in range(dimensions))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(dimensions))
    padding = tuple(draw(st.integers(0, size // 2)) for size in window)
    sizes = [size + draw(st.integers(0, 5)) for size in window]
    channels = draw(st.sampled_from([3, 17]))  # few and many are pooled in different ways
    inputs = whole_numbers((2, channels, *sizes))
    return window, draw(st.sampled_from([None, stride])), padding, inputs


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from(["max", "avg"]), windows())
def test_equals_pytorch(kind, example):
    functional = pytest.importorskip("torch").nn.functional
    window, stride, padding, inputs = example
    theirs = getattr(functional, f"{kind}_pool{inputs.ndim - 2}d")
    assert_same(
        lambda x: KINDS[kind][0](x, window, stride=stride, padding=padding),
        lambda x: theirs(x, window, stride=stride, padding=padding),
        inputs,
    )


@pytest.mark.parametrize("channels", [3, 17])  # few and many are pooled in different ways
def test_second_derivatives_of_equal_maxima_are_those_of_the_first(channels):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(whole_numbers((2, 6, 6, channels)))
        direction = jnp.asarray(rng.standard_normal(x.shape))

        def loss(x):
            return jnp.sum(jnp.sin(max_pool(x, 3, stride=2, padding=1)))

        def product(x):
            forward = jax.jvp(jax.grad(loss), (x,), (direction,))[1]
            return forward, jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), direction))(x)

        found = jax.jit(product)(x)
        with reference():
            expected = jax.jit(product)(x)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(["max", "avg"]),
    st.lists(st.tuples(st.integers(1, 13), st.integers(1, 8)), min_size=1, max_size=3),
)
def test_adaptive_equals_pytorch(kind, sizes):
    functional = pytest.importorskip("torch").nn.functional
    spatial, output_size = zip(*sizes, strict=True)
    theirs = getattr(functional, f"adaptive_{kind}_pool{len(sizes)}d")
    assert_same(
        lambda x: KINDS[kind][1](x, output_size),
        lambda x: theirs(x, output_size),
        whole_numbers((2, 3, *spatial)),
    )


def test_the_gradient_finds_its_maximum_in_a_compiled_network():
    """XLA computes the inputs of pooling anew on the way back, and may round them otherwise."""
    rng = np.random.default_rng(0)
    x, cotangent = (rng.standard_normal(shape) for shape in ((8, 56, 56, 64), (8, 28, 28, 64)))

    def gradient(dtype):
        scale, bias = jnp.linspace(0.5, 2, 64, dtype=dtype), jnp.linspace(-1, 1, 64, dtype=dtype)

        def loss(x):
            normalized, _, _ = batch_norm(x, scale, bias, epsilon=1e-5)
            pooled = max_pool(jax.nn.relu(normalized), 3, stride=2, padding=1)
            return jnp.sum(pooled * cotangent.astype(dtype))

        return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(x, dtype)))

    with jax.enable_x64(True):
        exact = gradient(np.float64)
    wrong = np.abs(gradient(np.float32) - exact) > 1e-3
    assert wrong.mean() < 1e-5  # here and there two values are equal in float32 alone


def test_averages_by_hand():
    row = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(1, 5, 1)
    # Padded zeros count: (0 + 1) / 2, (2 + 3) / 2, (4 + 5) / 2.
    np.testing.assert_allclose(avg_pool(row, 2, padding=1)[0, :, 0], [0.5, 2.5, 4.5])
    # Three windows of five positions begin at 0, 1, 3 and end before 2, 4, 5.
    np.testing.assert_allclose(adaptive_avg_pool(row, 3)[0, :, 0], [1.5, 3.0, 4.5])
    np.testing.assert_array_equal(adaptive_max_pool(row, 3)[0, :, 0], [2, 4, 5])


def test_negative_maxima_win_over_padding():
    assert float(max_pool(jnp.full((1, 3, 3, 1), -5.0), 3, padding=1).max()) == -5


def test_averages_bfloat16_in_float32():
    # 256 + 1 is 256 in bfloat16: a sum in it would stop growing.
    ones = jnp.ones((1, 64, 64, 1), jnp.bfloat16)
    for average in avg_pool(ones, 64), adaptive_avg_pool(ones, 1):
        assert average.dtype == jnp.bfloat16
        assert float(average.squeeze()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 9}, r"inputs must be at least as large as the window \[9, 9\], got \[8, 8\]"),
        ({"window": 2, "padding": 2}, r"padding must be at most half the window"),
        ({"window": (2, 2, 2)}, r"window must have 2 numbers"),
    ],
)
def test_refuses_windows_that_do_not_fit(arguments, message):
    for pool in max_pool, avg_pool:
        with pytest.raises(ValueError, match=message):
            pool(jnp.ones((1, 8, 8, 1)), **arguments)
