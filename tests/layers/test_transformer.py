"""Transformer blocks: results of PyTorch and of the course, with pre-norm and post-norm."""

import functools

import flax.linen as nn
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
    AddPositions,
    TransformerBlock,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    causal_mask,
    padding_mask,
    sinusoidal_positions,
)

SIZES = {"hidden_size": 32, "num_heads": 4, "feed_forward_size": 64}
PRECISIONS = [(jnp.float64, 1e-7), (jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)]


def reference_inputs(dtype=np.float32):
    x = jnp.asarray(reference.inputs("sequence", (2, 6, 32)), dtype)
    return x, jnp.asarray(reference.inputs("memory", (2, 5, 32)), dtype)


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_golden_encoder_and_decoder_layers(order, activation, dtype, tolerance):
    options = {**SIZES, "activation": activation, "norm_first": order == "pre"}
    name = f"transformer_{order}norm_{activation}"
    with jax.enable_x64(True):
        x, memory = reference_inputs(dtype)
        encoder, decoder = TransformerEncoderLayer(**options), TransformerDecoderLayer(**options)
        variables = reference_variables(encoder, "transformer_encoder_layer", dtype, x)
        encoded = encoder.apply(variables, x, padding_mask(np.array([6, 4]), 6))
        variables = reference_variables(decoder, "transformer_decoder_layer", dtype, x, memory)
        decoded = decoder.apply(variables, x, memory, causal_mask(6))
        assert encoded.dtype == decoded.dtype == dtype
    assert_close(encoded, reference.golden(f"{name}/encoder"), tolerance)
    assert_close(decoded, reference.golden(f"{name}/decoder"), tolerance)


@pytest.mark.quick
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_golden_course_block(dtype, tolerance):
    block = TransformerBlock(**SIZES)
    with jax.enable_x64(True):
        x, _ = reference_inputs(dtype)
        variables = reference_variables(block, "TransformerBlock", dtype, x)
        plain = block.apply(variables, x)
        causal = block.apply(variables, x, causal_mask(6))
        assert plain.dtype == causal.dtype == dtype
    assert_close(plain, reference.golden("TransformerBlock/output"), tolerance)
    assert_close(causal, reference.golden("TransformerBlock/causal_mask"), tolerance)


@pytest.mark.parametrize(
    ("name", "layer", "num_inputs"),
    [
        ("TransformerBlock", TransformerBlock(**SIZES), 1),
        ("transformer_encoder_layer", TransformerEncoderLayer(**SIZES), 1),
        ("transformer_decoder_layer", TransformerDecoderLayer(**SIZES), 2),
    ],
)
def test_names_and_shapes(name, layer, num_inputs):
    variables = reference_variables(layer, name, jnp.float32, *reference_inputs()[:num_inputs])
    assert names_and_shapes(variables) == reference.STATE_DICTS[name]


@st.composite
def layer_cases(draw):
    num_heads = draw(st.integers(1, 3))
    options = {
        "num_heads": num_heads,
        "hidden_size": num_heads * draw(st.integers(1, 3)),
        "feed_forward_size": draw(st.integers(1, 7)),
        "activation": draw(st.sampled_from(["relu", "gelu"])),
        "norm_first": draw(st.booleans()),
    }
    shape = tuple(draw(st.integers(1, size)) for size in (3, 5, 4))
    return draw(st.booleans()), options, shape, draw(st.integers(0, 1000))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(layer_cases())
def test_live_parity(case):
    """Encoder and decoder layers: results and all gradients, causal and with padded memory."""
    torch = pytest.importorskip("torch")
    is_decoder, options, (B, T, S), seed = case
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    x, memory = (random.standard_normal((B, n, options["hidden_size"])) for n in (T, S))
    lengths = random.integers(1, S + 1, B)

    kind = torch.nn.TransformerDecoderLayer if is_decoder else torch.nn.TransformerEncoderLayer
    theirs = kind(
        options["hidden_size"],
        options["num_heads"],
        options["feed_forward_size"],
        dropout=0.0,
        activation=options["activation"],
        norm_first=options["norm_first"],
        batch_first=True,
    ).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    if is_decoder:
        padding = torch.tensor(np.arange(S) >= lengths[:, None])
        there = theirs(
            torch.tensor(x),
            torch.tensor(memory),
            tgt_mask=hidden,
            memory_key_padding_mask=padding,
        )
    else:
        there = theirs(torch.tensor(x), src_mask=hidden)
    torch.sin(there).sum().backward()

    with jax.enable_x64(True):
        if is_decoder:
            ours = TransformerDecoderLayer(**options, dropout=0.0)
            inputs = (x, memory, causal_mask(T), padding_mask(jnp.array(lengths), S))
        else:
            ours = TransformerEncoderLayer(**options, dropout=0.0)
            inputs = (x, causal_mask(T))
        variables = torch_variables(ours, theirs, *inputs)

        def loss(variables):
            results = ours.apply(variables, *inputs, train=True)
            return jnp.sin(results).sum(), results

        gradients, results = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert_close(results, there.detach().numpy(), 1e-9)
    assert_gradients_match(gradients, theirs)


@pytest.mark.parametrize("norm_first", [False, True])
def test_every_parameter_gets_a_gradient_under_dropout(norm_first):
    x, memory = reference_inputs()
    options = {**SIZES, "dropout": 0.3, "norm_first": norm_first}
    layers = [
        (TransformerBlock(**options), (x,)),
        (TransformerEncoderLayer(**options), (x,)),
        (TransformerDecoderLayer(**options), (x, memory)),
    ]
    for layer, inputs in layers:
        variables = jax.jit(layer.init)(jax.random.key(0), *inputs)
        rngs = {"dropout": jax.random.key(1)}

        def loss(variables, layer=layer, inputs=inputs, rngs=rngs):
            return jnp.sum(jnp.sin(layer.apply(variables, *inputs, train=True, rngs=rngs)))

        for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(variables)):
            assert np.any(gradient)


def test_rematerialized_layers_compute_the_same():
    x, _ = reference_inputs()
    plain = TransformerEncoderLayer(**SIZES)
    saving = nn.remat(TransformerEncoderLayer, static_argnums=(3,))(**SIZES)
    variables = jax.jit(plain.init)(jax.random.key(0), x)

    def loss(layer, variables):
        rngs = {"dropout": jax.random.key(1)}
        return jnp.sum(jnp.sin(layer.apply(variables, x, None, True, rngs=rngs)))

    gradients = (jax.grad(functools.partial(loss, layer))(variables) for layer in (plain, saving))
    for ours, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_sinusoidal_positions_against_sums_by_hand():
    waves = sinusoidal_positions(3, 4)
    np.testing.assert_allclose(waves[0], [0, 1, 0, 1])
    np.testing.assert_allclose(
        waves[2], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], rtol=1e-12
    )


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_positions_from_the_middle_on(kind):
    x = jnp.zeros((1, 6, 4))
    layer = AddPositions(kind, max_length=8)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    whole = layer.apply(variables, x)
    np.testing.assert_array_equal(layer.apply(variables, x[:, :2], 3), whole[:, 3:5])
    with pytest.raises(ValueError, match="at most max_length = 8 steps, got 9"):
        layer.apply(variables, jnp.zeros((1, 9, 4)))


def test_wrong_arguments_are_named():
    x, memory = reference_inputs()
    for layer in (TransformerBlock(**SIZES), TransformerEncoderLayer(**SIZES)):
        with pytest.raises(ValueError, match=r"inputs .*D=32\], got \[2, 32\]"):
            layer.init(jax.random.key(0), x[:, 0])
        with pytest.raises(ValueError, match="num_heads must divide the 32 features, got 5"):
            layer.clone(num_heads=5).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"memory .*B=2, S, D=32\], got \[1, 5, 32\]"):
        TransformerDecoderLayer(**SIZES).init(jax.random.key(0), x, memory[:1])
