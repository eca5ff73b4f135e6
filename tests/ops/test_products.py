"""Products of rows with a matrix: the values and gradients of the plain product."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.ops.products import multiply, product_over_rows


@pytest.mark.parametrize("leading", [(7,), (2, 3), (2, 1, 4), (0,), (0, 3)])
@pytest.mark.parametrize("features", [5, 130])
def test_all_forms_are_the_plain_product(leading, features):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((*leading, features)))
        matrix = jnp.asarray(rng.standard_normal((features, 3)))

        def value_and_gradients(product):
            outputs, pull_back = jax.vjp(product, x, matrix)
            return outputs, pull_back(jnp.sin(outputs))

        ours = jax.jit(lambda: value_and_gradients(multiply))()
        plain = jax.jit(lambda: value_and_gradients(jnp.matmul))()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), ours, plain)


def test_the_gradient_has_a_gradient():
    rng = np.random.default_rng(0)
    x, matrix = (rng.standard_normal(shape) for shape in [(4, 130), (130, 3)])

    def norm(product):
        def of_matrix(m):
            return jax.grad(lambda m: (product(x, m) ** 3).sum())(m)

        return jax.grad(lambda m: (of_matrix(m) ** 2).sum())(matrix)

    with jax.enable_x64(True):
        np.testing.assert_allclose(norm(multiply), norm(jnp.matmul), rtol=1e-10)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(("features", "contracted"), [(128, 1), (127, 0)])
def test_a_cpu_gets_wide_rows_transposed(features, contracted):
    x, y = jnp.ones((64, features)), jnp.ones((64, 8))
    compiled = jax.jit(product_over_rows).lower(x, y).compile().as_text()
    assert f"lhs_contracting_dims={{{contracted}}}" in compiled
