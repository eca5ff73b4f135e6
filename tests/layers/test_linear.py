"""Linear and Embedding against PyTorch's, and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_parity import LIVE_TOLERANCE, assert_live_parity
from helpers.parity import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.layers import Embedding, Linear

pytestmark = pytest.mark.quick


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_linear_equals_pytorch(in_features, out_features, bias):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.Linear(in_features, out_features, bias=bias)
    inputs = np.random.default_rng(0).standard_normal((5, in_features))
    assert_live_parity(Linear(out_features, use_bias=bias), theirs, inputs)


def test_linear_takes_any_leading_axes():
    params = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([0.5, 0.0])}
    outputs = Linear(2).apply({"params": params}, jnp.ones((3, 4, 2)))
    np.testing.assert_array_equal(outputs, np.broadcast_to([4.5, 6.0], (3, 4, 2)))


def test_linear_starts_as_pytorch_does():
    params = Linear(100).init(jax.random.key(0), jnp.ones((1, 400)))["params"]
    for leaf in params["kernel"], params["bias"]:
        assert 0.9 / 20 < np.abs(leaf).max() <= 1 / 20
    assert np.std(params["kernel"]) == pytest.approx(1 / 20 / np.sqrt(3), rel=0.05)


def test_linear_refuses_another_number_of_features():
    variables = Linear(2).init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"inputs of Linear .*I=3\], got \[1, 4\]"):
        Linear(2).apply(variables, jnp.ones((1, 4)))


@pytest.mark.parametrize("padding_index", [None, 0, 2])
def test_embedding_equals_pytorch(padding_index):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.Embedding(7, 4, padding_idx=padding_index).double()
    tokens = np.random.default_rng(0).integers(0, 7, (3, 5))
    cotangent = np.random.default_rng(1).standard_normal((3, 5, 4))
    outputs = theirs(torch.tensor(tokens))
    outputs.backward(torch.tensor(cotangent))
    with jax.enable_x64(True):
        ours = Embedding(7, 4, padding_index=padding_index)
        params = {"params": {"embedding": jnp.asarray(theirs.weight.detach().numpy())}}
        vectors, pullback = jax.vjp(lambda params: ours.apply(params, tokens), params)
        (gradient,) = pullback(jnp.asarray(cotangent))
        assert_close(vectors, outputs.detach().numpy(), LIVE_TOLERANCE)
        assert_close(gradient["params"]["embedding"], theirs.weight.grad.numpy(), LIVE_TOLERANCE)


def test_embedding_starts_with_a_zero_padding_row():
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = Embedding(1000, 8, padding_index=3).init(jax.random.key(0), tokens)
    table = np.asarray(variables["params"]["embedding"])
    assert not table[3].any()
    assert np.std(np.delete(table, 3, axis=0)) == pytest.approx(1, rel=0.05)


def test_embedding_reads_unknown_tokens_as_nan():
    embedding = Embedding(3, 2)
    variables = embedding.init(jax.random.key(0), jnp.zeros(1, jnp.int32))
    assert np.isnan(jax.jit(embedding.apply)(variables, jnp.array([3]))).all()


def test_embedding_refuses_tokens_that_are_not_integers():
    with pytest.raises(ValueError, match="tokens must be integers, got float32"):
        Embedding(3, 2).init(jax.random.key(0), jnp.zeros(1))
