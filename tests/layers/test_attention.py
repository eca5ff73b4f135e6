"""Attention: results of PyTorch and of the course, masks, and decoding with a cache."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers.parity import (
    assert_close,
    assert_gradients_match,
    names_and_shapes,
    reference_variables,
    torch_variables,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.layers import (
    MultiHeadAttention,
    PackedMultiHeadAttention,
    causal_mask,
    dot_product_attention,
    padding_mask,
)
from flaxdl.ops import cudnn_attention

LENGTHS = np.array([6, 4])  # of the reference inputs: the last two keys of row 1 are padding
KINDS = {
    "MultiHeadAttention": MultiHeadAttention,
    "multihead_attention": PackedMultiHeadAttention,
}


def reference_case(name, dtype=np.float32):
    """The layer of the golden values, its variables, its inputs x and its memory."""
    layer = KINDS[name](hidden_size=32, num_heads=4)
    x = jnp.asarray(reference.inputs("sequence", (2, 6, 32)), dtype)
    memory = jnp.asarray(reference.inputs("memory", (2, 5, 32)), dtype)
    return layer, reference_variables(layer, name, dtype, x, x, x), x, memory


def golden_pairs(name, dtype=np.float32):
    """Each golden array with what the layer makes of the same inputs."""
    layer, variables, x, memory = reference_case(name, dtype)
    padded = padding_mask(LENGTHS, 6)
    causal = layer.apply(variables, x, x, x, causal_mask(6))
    if name == "MultiHeadAttention":
        yield layer.apply(variables, x, x, x), "output"
        yield layer.apply(variables, x, x, x, padded), "padding_mask"
        yield causal, "causal_mask"
    else:
        output, extra = layer.apply(variables, x, x, x, padded, mutable=["intermediates"])
        yield output, "output"
        yield extra["intermediates"]["attention_weights"][0], "weights"
        yield layer.apply(variables, x, memory, memory), "cross"
        yield causal, "causal"


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (jnp.float64, 1e-7),
        pytest.param(jnp.float32, 1e-5, marks=pytest.mark.quick),
        (jnp.bfloat16, 3e-2),
    ],
)
def test_golden_values(name, dtype, tolerance):
    with jax.enable_x64(True):
        for ours, quantity in golden_pairs(name, dtype):
            assert ours.dtype == dtype
            assert_close(ours, reference.golden(f"{name}/{quantity}"), tolerance)


@pytest.mark.parametrize("name", KINDS)
def test_names_and_shapes(name):
    _, variables, _, _ = reference_case(name)
    assert names_and_shapes(variables) == reference.STATE_DICTS[name]


def course_attention(torch, hidden_size, num_heads):
    """The course's class, which sets masked scores to minus infinity."""

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("W_q", "W_k", "W_v", "W_o"):
                self.add_module(name, torch.nn.Linear(hidden_size, hidden_size))

        def forward(self, query, key, value, mask):
            query, key, value = (
                linear(x).unflatten(-1, (num_heads, -1)).movedim(2, 1)
                for linear, x in ((self.W_q, query), (self.W_k, key), (self.W_v, value))
            )
            scores = query @ key.mT / math.sqrt(hidden_size // num_heads)
            scores = scores.masked_fill(~mask, -math.inf)
            return self.W_o((scores.softmax(-1) @ value).movedim(1, 2).flatten(2))

    return Attention()


@st.composite
def attention_cases(draw):
    num_heads = draw(st.integers(1, 3))
    return {
        "name": draw(st.sampled_from(sorted(KINDS))),
        "num_heads": num_heads,
        "hidden_size": num_heads * draw(st.integers(1, 4)),
        "batch_size": draw(st.integers(1, 3)),
        "num_queries": draw(st.integers(1, 5)),
        "num_keys": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(max_examples=8, deadline=None, derandomize=True)
@given(attention_cases())
def test_live_parity(case):
    """Results and all gradients under a random mask that leaves each query at least one key."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(case["seed"])
    random = np.random.default_rng(case["seed"])
    B, N, D = case["batch_size"], case["num_heads"], case["hidden_size"]
    T, S = case["num_queries"], case["num_keys"]
    query, key, value = (random.standard_normal((B, length, D)) for length in (T, S, S))
    mask = random.random((B, N, T, S)) < 0.6
    mask[..., 0] |= ~mask.any(-1)

    if case["name"] == "MultiHeadAttention":
        theirs = course_attention(torch, D, N).double()
        there = theirs(*map(torch.tensor, (query, key, value, mask)))
    else:
        theirs = torch.nn.MultiheadAttention(D, N, batch_first=True).double()
        torch.nn.init.normal_(theirs.in_proj_bias)
        hidden = torch.tensor(~mask).flatten(0, 1)
        there, _ = theirs(*map(torch.tensor, (query, key, value)), attn_mask=hidden)
    torch.sin(there).sum().backward()

    with jax.enable_x64(True):
        ours = KINDS[case["name"]](hidden_size=D, num_heads=N)
        variables = torch_variables(ours, theirs, query, key, value)

        def loss(variables):
            results = ours.apply(variables, query, key, value, jnp.asarray(mask))
            return jnp.sin(results).sum(), results

        gradients, results = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert_close(results, there.detach().numpy(), 1e-9)
    assert_gradients_match(gradients, theirs)


def test_weights_against_sums_by_hand():
    """One head of one feature: scores 0 and ln 3, so the weights are 1/4 and 3/4."""
    query = jnp.ones((1, 1, 1))
    key = jnp.array([[[0.0], [math.log(3)]]])
    results, weights = dot_product_attention(query, key, jnp.array([[[4.0], [8.0]]]), num_heads=1)
    np.testing.assert_allclose(weights[0, 0, 0], [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(results[0, 0], [7], rtol=1e-6)


def test_masks():
    np.testing.assert_array_equal(
        padding_mask(np.array([2, 0]), 3)[:, 0, 0], [[1, 1, 0], [0, 0, 0]]
    )
    np.testing.assert_array_equal(causal_mask(3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize("name", KINDS)
def test_fully_masked_queries_give_the_bias_and_finite_gradients(name):
    layer, variables, x, _ = reference_case(name)
    mask = padding_mask(np.array([6, 0]), 6)

    def loss(variables, x):
        results = layer.apply(variables, x, x, x, mask)
        return jnp.sum(results**2), results

    gradients, results = jax.grad(loss, (0, 1), has_aux=True)(variables, x)
    output = "W_o" if name == "MultiHeadAttention" else "out_proj"
    bias = variables["params"][output]["bias"]
    np.testing.assert_allclose(results[1], np.broadcast_to(bias, (6, 32)), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", KINDS)
def test_masked_keys_have_no_effect(name):
    layer, variables, x, memory = reference_case(name)
    mask = padding_mask(np.array([5, 3]), 5)
    changed = memory.at[1, 3:].set(1e4)
    expected = layer.apply(variables, x, memory, memory, mask)
    np.testing.assert_array_equal(layer.apply(variables, x, changed, changed, mask), expected)
    as_numbers = layer.apply(variables, x, memory, memory, mask.astype(jnp.int32))
    np.testing.assert_array_equal(as_numbers, expected)


def test_dropout_acts_on_the_weights_in_training_only():
    layer, variables, x, _ = reference_case("multihead_attention")
    dropping = PackedMultiHeadAttention(hidden_size=32, num_heads=4, dropout=0.5)
    plain = layer.apply(variables, x, x, x)
    np.testing.assert_array_equal(dropping.apply(variables, x, x, x), plain)
    dropped = dropping.apply(variables, x, x, x, train=True, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(dropped, plain)


@pytest.mark.parametrize("chunks", [[1] * 6, [4, 2]])
def test_reading_step_by_step_equals_reading_at_once(chunks):
    layer, variables, x, _ = reference_case("multihead_attention")
    expected = layer.apply(variables, x, x, x, causal_mask(6))
    cache = {"keys": jnp.zeros((2, 8, 32)), "values": jnp.zeros((2, 8, 32))}
    position = 0
    for size in chunks:
        steps = x[:, position : position + size]
        results, updated = layer.apply(
            {**variables, "cache": cache}, steps, steps, steps, position=position, mutable=["cache"]
        )
        cache = updated["cache"]
        assert_close(results, expected[:, position : position + size], 1e-6)
        position += size


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide the 32 features, got 5"),
        ({"query": np.zeros((2, 32))}, r"query must have shape .* got \[2, 32\]"),
        ({"key": np.zeros((2, 5, 31))}, r"key .*D=32\], got \[2, 5, 31\]"),
        ({"value": np.zeros((2, 4, 32))}, r"value .*S=5.* got \[2, 4, 32\]"),
        ({"mask": np.ones((2, 5))}, r"mask .*\[6, 5\].*\[2, 4, 6, 5\].* got \[2, 5\]"),
        ({"mask": np.ones((2, 6, 5))}, r"mask .* got \[2, 6, 5\]"),
    ],
)
def test_wrong_arguments_are_named(name, changes, message):
    layer, variables, x, memory = reference_case(name)
    arguments = {"query": x, "key": memory, "value": memory, **changes}
    layer = layer.clone(num_heads=arguments.pop("num_heads", 4))
    with pytest.raises(ValueError, match=message):
        layer.apply(variables, **arguments)


@pytest.mark.parametrize(
    ("changes", "suits"),
    [
        ({}, True),
        ({"dtype": jnp.float32}, False),
        ({"num_heads": 16}, False),  # heads of four features
        ({"num_heads": 3}, False),
        ({"steps": 7}, True),
        ({"steps": 7, "mask": jnp.ones((7, 8))}, False),
        ({"mask": jnp.ones((8, 8))}, True),
    ],
)
def test_what_cudnn_is_given(monkeypatch, changes, suits):
    given = {"dtype": jnp.bfloat16, "num_heads": 4, "steps": 8, "mask": None} | changes
    query = jnp.zeros((2, given["steps"], 64), given["dtype"])
    key = jnp.zeros((2, 8, 64), given["dtype"])
    arguments = (query, key, key, given["mask"])
    monkeypatch.setattr(cudnn_attention, "has_ampere", lambda: False)
    assert not cudnn_attention.suits_cudnn(*arguments, num_heads=given["num_heads"])
    monkeypatch.setattr(cudnn_attention, "has_ampere", lambda: True)
    assert cudnn_attention.suits_cudnn(*arguments, num_heads=given["num_heads"]) is suits
    with cudnn_attention.without_cudnn():
        assert not cudnn_attention.suits_cudnn(*arguments, num_heads=given["num_heads"])


def test_a_batch_may_be_empty():
    x = jnp.zeros((0, 3, 4))
    results, weights = dot_product_attention(x, x, x, num_heads=2)
    assert (results.shape, weights.shape) == ((0, 3, 4), (0, 2, 3, 3))
    layer = MultiHeadAttention(4, 2)
    variables = layer.init(jax.random.key(0), *[jnp.zeros((1, 3, 4))] * 3)
    gradients = jax.grad(lambda v: layer.apply(v, x, x, x).sum())(variables)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_dtypes_may_differ():
    query = jax.random.normal(jax.random.key(0), (1, 3, 4), jnp.bfloat16)
    key = jax.random.normal(jax.random.key(1), (1, 3, 4), jnp.float32)

    def total(query, key):
        return dot_product_attention(query, key, key, num_heads=2)[0].sum()

    gradients = jax.grad(total, (0, 1))(query, key)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
