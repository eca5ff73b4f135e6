"""Where fast versions are chosen, and the mode that switches them off."""

import io
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxdl
from flaxdl.layers import Conv, LayerNorm
from flaxdl.ops.activations import gelu
from flaxdl.ops.dispatch import is_reference

pytestmark = pytest.mark.quick

PACKAGE = Path(flaxdl.__file__).parent
NAMES = {"custom_vjp", "platform_dependent", "shard_map", "platform"}
MAY = ("ops/dispatch.py", "backend/", "training/distributed/")


def names_in(path):
    """The names in the code of a file; comments and texts do not count."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_only_dispatch_names_platforms_and_gradients_of_our_own():
    found = {
        str(path.relative_to(PACKAGE)): names_in(path) & NAMES for path in PACKAGE.rglob("*.py")
    }
    assert found["ops/dispatch.py"] >= {"custom_vjp", "platform_dependent", "platform"}
    others = {name: used for name, used in found.items() if used and not name.startswith(MAY)}
    assert others == {}


def is_fast(function, *arguments):
    return "custom_vjp" in str(jax.make_jaxpr(function)(*arguments))


def test_one_compiled_function_is_fast_by_definition_and_fast_again():
    traced = []

    @jax.jit
    def function(x):
        traced.append(is_reference())
        return gelu(x)

    x = jnp.linspace(-2.0, 2.0, 5)
    fast = function(x)
    with flaxdl.ops.reference():
        plain = function(x)
        assert not is_fast(function, x)
        tangent = jax.jvp(function, (x,), (x,))[1]
    assert is_fast(function, x)
    np.testing.assert_array_equal(function(x), fast)
    assert traced[:2] == [False, True]
    np.testing.assert_allclose(plain, fast, rtol=1e-6)
    expected = jax.vmap(jax.grad(gelu))(x) * x
    np.testing.assert_allclose(tangent, expected, rtol=1e-5, atol=1e-6)


def test_the_mode_reaches_into_what_was_compiled_before():
    """Layers within `jit`, `scan` and `checkpoint` are traced again in the other mode."""
    layer = LayerNorm()
    variables = layer.init(jax.random.key(0), jnp.ones((2, 3)))

    @jax.jit
    def repeated(x):
        step = jax.checkpoint(lambda x: layer.apply(variables, x))
        return jax.lax.scan(lambda x, _: (step(x), None), x, length=2)[0]

    x = jnp.arange(6.0).reshape(2, 3)
    assert is_fast(repeated, x)
    with flaxdl.ops.reference():
        assert not is_fast(repeated, x)
        jax.jvp(repeated, (x,), (x,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(repeated, (x,), (x,))


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("", False)])
def test_the_environment_sets_the_mode_of_a_process(value, expected):
    code = "from flaxdl.ops.dispatch import is_reference; print(is_reference())"
    environment = os.environ | {"FLAXDL_REFERENCE": value}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == str(expected)


def test_second_derivatives_of_a_single_channel_are_right_under_vmap():
    """XLA's simplifier got them wrong when the kernel's rows were unstacked."""
    conv = Conv(32, 3, padding=1, use_bias=False)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, 8, 8, 1)))
        kernel = jnp.asarray(rng.standard_normal((3, 3, 1, 32)))
        directions = [jnp.asarray(rng.standard_normal(kernel.shape)) for _ in range(2)]

        def loss(along):
            moved = kernel + along[0] * directions[0] + along[1] * directions[1]
            outputs = conv.apply({"params": {"kernel": moved}}, x)
            pooled = flaxdl.layers.max_pool(outputs, 2)
            return jnp.sum(jnp.sin(pooled @ jnp.ones((32, 3))))

        here = jnp.zeros(2)
        found = jax.jit(jax.hessian(loss))(here)
        with flaxdl.ops.reference():
            expected = jax.jit(jax.hessian(loss))(here)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
