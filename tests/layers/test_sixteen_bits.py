"""Sums in 16-bit layers are those of float32: in bfloat16 itself 256 + 1 is 256."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.layers import (
    LSTM,
    AddPositions,
    BatchNorm,
    Conv,
    Embedding,
    LayerNorm,
    Linear,
    PackedMultiHeadAttention,
)

MANY = 4096


def gradient_of_sum(layer, inputs, *more):
    """The gradient of the sum of all outputs by the parameters, in bfloat16."""
    variables = layer.init(jax.random.key(0), inputs, *more)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables["params"])

    def total(params):
        outputs = layer.apply({"params": params}, inputs, *more)
        assert outputs.dtype == jnp.bfloat16
        return outputs.astype(jnp.float32).sum()

    return jax.jit(jax.grad(total))(params)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Linear(3), (MANY, 2)),
        (Linear(3), (64, 64, 2)),
        (Conv(3, 1), (16, 16, 16, 2)),
        (Conv(3, 1), (64, 64, 2)),
        (LayerNorm(), (MANY, 3)),
    ],
)
def test_gradients_of_biases(layer, shape):
    gradients = gradient_of_sum(layer, jnp.ones(shape, jnp.bfloat16))
    np.testing.assert_array_equal(gradients["bias"].astype(jnp.float32), MANY)


def test_gradients_of_packed_biases():
    x = jnp.ones((64, 64, 4), jnp.bfloat16)
    layer = PackedMultiHeadAttention(4, 1)
    params = layer.init(jax.random.key(0), x, x, x)["params"]
    params["out_proj"]["kernel"] = jnp.eye(4)  # what the values add comes out as it is
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    gradients = jax.jit(
        jax.grad(lambda p: layer.apply({"params": p}, x, x, x).astype(jnp.float32).sum())
    )(params)
    of_values = gradients["in_proj_bias"][8:].astype(jnp.float32)
    np.testing.assert_array_equal(of_values, MANY)


def test_gradients_of_positions():
    x = jnp.zeros((MANY, 3, 2), jnp.bfloat16)
    gradients = gradient_of_sum(AddPositions("learned", max_length=5), x)
    expected = np.repeat([MANY, 0], [3, 2])[:, None] * np.ones((1, 2))
    np.testing.assert_array_equal(gradients["embedding"].astype(jnp.float32), expected)


@pytest.mark.parametrize("vocab_size", [2, 100])
def test_gradients_of_a_token_that_occurs_very_often(vocab_size):
    tokens = jnp.ones((64, 64), jnp.int32).at[0, 0].set(0)
    gradients = gradient_of_sum(Embedding(vocab_size, 3), tokens)["embedding"]
    expected = np.zeros((vocab_size, 3))
    expected[:2] = [[1], [MANY]]  # 4095 is 4096 in bfloat16
    np.testing.assert_array_equal(gradients.astype(jnp.float32), expected)


def test_small_steps_of_a_memory_add_up():
    """Open gates and a new value of 1/512: after 600 steps the memory is 600/512."""
    steps, new = 600, 1 / 512
    variables = {
        "weight_ih_l0": jnp.zeros((4, 1)),
        "weight_hh_l0": jnp.zeros((4, 1)),
        "bias_ih_l0": jnp.array([20.0, 20.0, new, 20.0]),
        "bias_hh_l0": jnp.zeros(4),
    }
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables)
    outputs, (hidden, memory) = LSTM(1).apply(
        {"params": params}, jnp.zeros((1, steps, 1), jnp.bfloat16)
    )
    assert outputs.dtype == hidden.dtype == memory.dtype == jnp.bfloat16
    assert float(memory[0, 0, 0]) == pytest.approx(steps * new, rel=5e-3)
    assert float(outputs[0, -1, 0]) == pytest.approx(np.tanh(steps * new), rel=5e-3)


def test_statistics_of_a_batch_far_from_zero():
    """The mean is ten deviations away from zero, so that squares are large beside the variance."""
    x = 10 + jax.random.normal(jax.random.key(0), (64, 8, 8, 3))
    x = x.astype(jnp.bfloat16)
    layer = BatchNorm(momentum=1.0)
    variables = layer.init(jax.random.key(0), x)
    outputs, changed = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    exact = np.asarray(x, np.float64).reshape(-1, 3)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], exact.var(0, ddof=1), rtol=1e-4)
    normalized = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(outputs).reshape(-1, 3), normalized, atol=2e-2)
