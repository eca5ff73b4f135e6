"""Lowerings for a CPU as they are compiled."""

import jax
import jax.numpy as jnp
import pytest

from flaxdl.ops.convolution import convolve
from flaxdl.ops.products import product_over_rows

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(("features", "contracted"), [(128, 1), (127, 0)])
def test_long_rows_are_transposed_first(features, contracted):
    x, y = jnp.ones((64, features)), jnp.ones((64, 8))
    compiled = jax.jit(product_over_rows).lower(x, y).compile().as_text()
    assert f"lhs_contracting_dims={{{contracted}}}" in compiled


@pytest.mark.parametrize(("dtype", "convolves"), [(jnp.float32, False), (jnp.bfloat16, True)])
def test_tiles_are_for_32_bits(dtype, convolves):
    def compute(x, kernel):
        settings = {"strides": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
        return convolve(x, kernel, **settings)

    x, kernel = jnp.ones((1, 16, 16, 64), dtype), jnp.ones((3, 3, 64, 64), dtype)
    compiled = jax.jit(compute).lower(x, kernel).compile().as_text()
    assert (" convolution(" in compiled) == convolves
