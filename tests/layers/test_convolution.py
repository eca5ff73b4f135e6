"""Conv against PyTorch's, and its errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_parity import assert_live_parity
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.layers import Conv
from flaxdl.ops import reference
from flaxdl.ops.convolution import convolve

IMAGES = jnp.ones((2, 8, 8, 4))

convolve_2d = partial(convolve, strides=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)


def convolve_by_definition(*arrays, **settings):
    with reference():
        return convolve_2d(*arrays, **settings)


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


@pytest.mark.parametrize(
    ("images", "kernel", "strides", "padding"),
    [
        ((2, 6, 7, 1), (3, 3, 1, 16), (1, 1), (1, 1)),  # one channel
        ((2, 6, 7, 1), (3, 3, 1, 5), (1, 1), (1, 1)),  # and few outputs
        ((2, 2, 3, 9), (3, 3, 9, 4), (1, 1), (1, 1)),  # no larger than the window
        ((2, 7, 7, 3), (3, 3, 3, 4), (2, 1), (1, 0)),  # few channels
        ((2, 5, 6, 9), (1, 1, 9, 4), (2, 2), (0, 0)),  # one position
        ((2, 5, 6, 9), (1, 1, 9, 4), (1, 1), (1, 1)),
        ((2, 9, 11, 4), (5, 5, 4, 3), (1, 1), (0, 2)),  # four side by side
        ((2, 9, 11, 4), (3, 2, 4, 3), (1, 3), (1, 1)),
        ((2, 9, 11, 4), (1, 3, 4, 1), (1, 1), (1, 1)),  # of which zeros are cut off again
        ((2, 9, 11, 6), (5, 5, 6, 16), (1, 1), (0, 0)),  # two side by side
        ((2, 9, 11, 16), (3, 3, 16, 12), (2, 2), (1, 1)),
        ((2, 8, 9, 3), (2, 2, 3, 16), (2, 2), (0, 0)),  # windows that do not overlap
        ((2, 5, 6, 9), (3, 3, 9, 32), (1, 1), (1, 1)),  # XLA's own
        ((1, 16, 17, 64), (3, 3, 64, 65), (1, 1), (1, 1)),  # tiles
        ((2, 13, 12, 33), (3, 3, 33, 32), (1, 1), (1, 1)),  # tiles in the gradient
    ],
)
def test_all_lowerings_are_the_definition(images, kernel, strides, padding):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, k = (jnp.asarray(rng.standard_normal(shape)) for shape in (images, kernel))

        def value_and_gradients(convolution):
            outputs, pull_back = jax.vjp(
                partial(convolution, strides=strides, padding=padding), x, k
            )
            return outputs, pull_back(jnp.sin(outputs))

        ours = jax.jit(lambda: value_and_gradients(convolve_2d))()
        plain = jax.jit(lambda: value_and_gradients(convolve_by_definition))()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), ours, plain)


@pytest.mark.parametrize("kernel", [(3, 3, 64, 64), (3, 3, 4, 4), (3, 3, 1, 16), (3, 3, 9, 32)])
def test_an_empty_batch_has_empty_outputs(kernel):
    x, k = jnp.ones((0, 8, 8, kernel[2])), jnp.ones(kernel)
    outputs, pull_back = jax.vjp(convolve_2d, x, k)
    assert outputs.shape == (0, 8, 8, kernel[3])
    d_inputs, d_kernel = pull_back(outputs)
    assert d_inputs.shape == x.shape
    np.testing.assert_array_equal(d_kernel, np.zeros(kernel))


def errors_in_float32():
    """Errors of outputs and gradients in float32, of tiles and of the plain convolution."""
    rng = np.random.default_rng(0)
    # Inputs as behind a ReLU: with a mean, which sums of tiles take away and add again.
    x = np.abs(rng.standard_normal((2, 14, 15, 128)))
    k = rng.standard_normal((3, 3, 128, 64)) / np.sqrt(9 * 128)
    gradient = rng.standard_normal((2, 14, 15, 64))

    def results(convolution, dtype):
        outputs, pull_back = jax.vjp(convolution, x.astype(dtype), k.astype(dtype))
        return outputs, *pull_back(gradient.astype(dtype))

    with jax.enable_x64(True):
        exact = jax.jit(lambda: results(convolve_by_definition, np.float64))()
        exact = [np.asarray(x) for x in exact]
    found = (
        jax.jit(partial(results, convolution, np.float32))()
        for convolution in (convolve_2d, convolve_by_definition)
    )
    return [
        [np.abs(a - e).max() / np.abs(e).max() for a, e in zip(arrays, exact, strict=True)]
        for arrays in found
    ]


def test_tiles_are_as_exact_as_the_plain_convolution():
    for ours, plain in zip(*errors_in_float32(), strict=True):
        assert 0 < ours < 1.2 * plain < 1e-5


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("dtype", "convolves"), [(jnp.float32, False), (jnp.bfloat16, True)])
def test_tiles_are_for_32_bits(dtype, convolves):
    x, k = jnp.ones((1, 16, 16, 64), dtype), jnp.ones((3, 3, 64, 64), dtype)
    compiled = jax.jit(convolve_2d).lower(x, k).compile().as_text()
    assert (" convolution(" in compiled) == convolves
