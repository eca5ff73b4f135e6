"""Conv against PyTorch's, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_parity import assert_live_parity
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.layers import Conv

IMAGES = jnp.ones((2, 8, 8, 4))


@st.composite
def convolutions(draw):
    """Arguments of a convolution and inputs [B, C, *spatial] that its window fits into."""
    dimensions = draw(st.integers(1, 3))

    def numbers(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dimensions))

    groups = draw(st.integers(1, 3))
    window, dilation, padding = numbers(1, 3), numbers(1, 2), numbers(0, 2)
    reach = [d * (w - 1) + 1 for d, w in zip(dilation, window, strict=True)]
    sizes = [r + draw(st.integers(0, 4)) for r in reach]
    options = {
        "kernel_size": window,
        "stride": numbers(1, 3),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    inputs = np.random.default_rng(0).standard_normal((2, channels[0], *sizes))
    return channels, options, draw(st.booleans()), inputs


@settings(max_examples=20, deadline=None, derandomize=True)
@given(convolutions())
def test_equals_pytorch(example):
    torch = pytest.importorskip("torch")
    (in_channels, out_channels), options, bias, inputs = example
    torch_conv = [torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d][inputs.ndim - 3]
    torch.manual_seed(0)
    theirs = torch_conv(in_channels, out_channels, **options, bias=bias)
    assert_live_parity(Conv(out_channels, **options, use_bias=bias), theirs, inputs)


def test_adds_up_the_window():
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.full(1, 0.5)}}
    image = jnp.arange(9.0).reshape(1, 3, 3, 1)
    outputs = Conv(1, 3, stride=2, padding=1).apply(ones, image)
    # The windows at the corners of 0..8 hold 0 1 3 4, 1 2 4 5, 3 4 6 7 and 4 5 7 8.
    np.testing.assert_array_equal(outputs[0, :, :, 0], [[8.5, 12.5], [20.5, 24.5]])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_stays_in_the_dtype_it_is_given(dtype):
    with jax.enable_x64(True):
        conv = Conv(3, 3)
        variables = conv.init(jax.random.key(0), IMAGES.astype(dtype))
        assert variables["params"]["kernel"].dtype == jnp.float32
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
        assert conv.apply(cast, IMAGES.astype(dtype)).dtype == dtype


def test_starts_as_pytorch_does():
    params = Conv(64, 3, groups=2).init(jax.random.key(0), jnp.ones((1, 8, 8, 32)))["params"]
    bound = 1 / np.sqrt(3 * 3 * 16)
    for leaf in params["kernel"], params["bias"]:
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.9 * bound
    # The deviation of a uniform distribution of width 2 b is b / sqrt(3).
    assert np.std(params["kernel"]) == pytest.approx(bound / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (jnp.ones((2, 8, 8, 3)), r"inputs of Conv .*C=4.* got \[2, 8, 8, 3\]"),
        (jnp.ones((2, 8, 4)), r"inputs of Conv .*B, H, W, C=4.* got \[2, 8, 4\]"),
        (jnp.ones((8, 4)), r"inputs of Conv must have one to three spatial axes"),
        (
            jnp.ones((2, 2, 8, 4)),
            r"inputs of Conv must be at least as large as the window \[3, 3\]",
        ),
    ],
)
def test_refuses_inputs_it_was_not_made_for(inputs, message):
    conv = Conv(2, 3)
    variables = conv.init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=message):
        conv.apply(variables, inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups must divide input and output channels, got 3 groups for 4 and 2"),
        ({"stride": (1, 2, 3)}, r"stride must have 2 numbers, one per axis, got \(1, 2, 3\)"),
    ],
)
def test_refuses_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Conv(2, 3, **options).init(jax.random.key(0), IMAGES)
