"""The exact GELU against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.ops.activations import gelu

INPUTS = np.concatenate([np.linspace(-12, 12, 1001), [0.0, 1e-30, -1e-30]])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 2e-6)])
def test_gelu_equals_pytorch(dtype, tolerance):
    torch = pytest.importorskip("torch")
    x = torch.tensor(INPUTS, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.gelu(x)
    (of_x,) = torch.autograd.grad(y.sum(), x)
    with jax.enable_x64(True):
        ours = jnp.asarray(INPUTS, dtype)
        value, gradient = jax.jit(gelu)(ours), jax.jit(jax.grad(lambda x: gelu(x).sum()))(ours)
        assert value.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(value, y.detach().numpy(), atol=tolerance, rtol=1e-6)
        np.testing.assert_allclose(gradient, of_x.numpy(), atol=tolerance, rtol=1e-6)


def test_gelu_in_bfloat16_is_rounded_once():
    x = jnp.linspace(-4, 4, 257, dtype=jnp.bfloat16)
    expected = gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(gelu)(x), expected)
