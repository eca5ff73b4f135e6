"""Recurrent encoder-decoder: PyTorch's results, padding, attention and incremental decoding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.learning import assert_every_parameter_learns, overfit
from helpers.parity import (
    assert_close,
    assert_gradients_match,
    cast,
    result_dtypes,
    torch_variables,
    with_inputs,
)
from helpers.pytorch_seq2seq import make_seq2seq
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.analysis import interpretability
from flaxdl.models import Seq2SeqRNN, translate

SIZES = {"vocab_size": 11, "embedding_size": 4, "hidden_size": 6, "target_vocab_size": 7}
MODEL = Seq2SeqRNN(**SIZES)
KEY = jax.random.key(0)
ATTENTION = [None, "additive", "dot"]
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
TARGETS = np.random.default_rng(1).integers(0, 7, (3, 5)).astype(np.int32)
LENGTHS = np.array([6, 4, 1])


def initial(model, **options):
    return jax.jit(model.init)(jax.random.key(0), TOKENS, targets=TARGETS, **options)


@partial(jax.jit, static_argnums=0)
def gradients_and_logits(model, variables, tokens, **options):
    def loss(variables):
        logits = model.apply(variables, tokens, **options)
        return jnp.sin(logits).sum(), logits

    return jax.grad(loss, has_aux=True)(variables)


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "gru", "num_layers": 2, "attention": "additive"},
        {"cell": "lstm", "num_layers": 2, "attention": "dot"},
        {"cell": "lstm", "bidirectional": False, "attention": "additive"},
        {"cell": "gru", "attention": None},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 1000))
def test_live_parity(options, lengths, seed):
    """Outputs, gradients and the effect of lengths, against packed sequences."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    theirs = make_seq2seq(torch, **SIZES, **options).double()
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, 11, (3, 6)), rng.integers(0, 7, (3, 5))
    there = theirs(torch.tensor(tokens), torch.tensor(targets), torch.tensor(lengths))
    torch.sin(there).sum().backward()

    with jax.enable_x64(True):
        ours = Seq2SeqRNN(**SIZES, **options)
        variables = torch_variables(ours, theirs, tokens, targets=targets)
        gradients, logits = gradients_and_logits(
            ours, variables, tokens, targets=targets, lengths=np.array(lengths)
        )
    assert_close(logits, there.detach().numpy(), 1e-9)
    assert_gradients_match(gradients, theirs)


@pytest.mark.parametrize("attention", ATTENTION)
def test_padding_has_no_effect(attention):
    model = Seq2SeqRNN(**SIZES, attention=attention)
    variables = initial(model)
    apply = jax.jit(model.apply)
    expected = apply(variables, TOKENS, targets=TARGETS, lengths=LENGTHS)
    padded = np.where(np.arange(6) < LENGTHS[:, None], TOKENS, 9)  # as if token 9 were padding
    ours = apply(variables, padded, targets=TARGETS, lengths=LENGTHS)
    np.testing.assert_array_equal(ours, expected)
    alone = apply(variables, TOKENS[1:2, :4], targets=TARGETS[1:2])  # reads as in its batch
    np.testing.assert_allclose(alone[0], expected[1], rtol=1e-5, atol=1e-6)
    without_tokens = apply(variables, TOKENS, targets=TARGETS, lengths=0 * LENGTHS)
    assert np.isfinite(without_tokens).all()


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_attention_is_a_distribution_over_the_tokens_without_padding(attention):
    model = Seq2SeqRNN(**SIZES, attention=attention)
    options = {"targets": TARGETS, "lengths": LENGTHS}
    (name, weights), *others = interpretability.attention(
        model, initial(model), TOKENS, **options
    ).items()
    assert (name, others) == ("attention", [])
    assert weights.shape == (3, 1, 5, 6)  # one head, targets, inputs
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    is_padding = np.arange(6) >= LENGTHS[:, None, None, None]
    np.testing.assert_array_equal(np.asarray(weights)[is_padding.repeat(5, axis=2)], 0)
    assert np.asarray(weights)[0].std() > 1e-4


def test_without_attention_there_are_no_attention_maps():
    model = MODEL.clone(attention=None)
    with pytest.raises(ValueError, match="need an attention layer; Seq2SeqRNN has none"):
        interpretability.attention(model, initial(model), TOKENS, targets=TARGETS)


def test_hidden_states_are_those_of_the_encoder():
    states = interpretability.hidden_states(MODEL, initial(MODEL), TOKENS, targets=TARGETS)
    assert {name: x.shape for name, x in states.items()} == {"encoder": (3, 6, 6)}


@pytest.mark.parametrize("options", [{"cell": "lstm", "num_layers": 2}, {"attention": "dot"}])
def test_translation_from_the_state_equals_reading_all_again(options):
    model = Seq2SeqRNN(**SIZES, **options)
    variables = initial(model)
    apply = jax.jit(model.apply)
    expected = np.full((3, 7), 1)
    for position in range(6):
        logits = apply(variables, TOKENS, targets=expected, lengths=LENGTHS)
        expected[:, position + 1] = logits[:, position].argmax(-1)
    options = {"start_token": 1, "end_token": -1, "max_length": 6, "lengths": LENGTHS}
    ours = translate(model, variables, TOKENS, **options)
    np.testing.assert_array_equal(ours, expected[:, 1:])


def test_model_learns():
    model = with_inputs(MODEL, targets=TARGETS, lengths=np.array([6, 4, 3]))
    assert_every_parameter_learns(model, TOKENS)
    labels = np.roll(TARGETS, -1, axis=1)
    assert overfit(model, TOKENS, labels, steps=120, learning_rate=0.03) == 1


def test_dropout_between_layers_is_drawn_at_each_step():
    """Without dropout, the state converges, since all targets are embedded as zeros."""
    model = MODEL.clone(num_layers=2, dropout=0.5)
    variables = initial(model)
    variables["params"]["target_embedding"]["embedding"] *= 0
    targets = np.full((1, 40), 3)

    def differences(model):
        call = jax.jit(partial(model.apply, train=True))
        logits = call(variables, TOKENS[:1], targets=targets, rngs={"dropout": KEY})
        return np.abs(np.diff(logits[0, 20:], axis=0)).max(axis=-1)

    assert differences(model).min() > 1e-3
    assert differences(model.clone(dropout=0.0)).max() < 1e-3


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
@pytest.mark.parametrize("attention", ATTENTION)
def test_models_stay_in_the_dtype_of_their_parameters(attention, dtype):
    model = Seq2SeqRNN(**SIZES, cell="lstm", attention=attention)
    options = {"targets": TARGETS, "lengths": LENGTHS}
    with jax.enable_x64(True):
        assert result_dtypes(model, dtype, TOKENS, **options) == {jnp.dtype(dtype)}


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_bfloat16_is_close_to_float32(attention):
    model = Seq2SeqRNN(**SIZES, attention=attention)
    variables, apply = initial(model), jax.jit(model.apply)
    options = {"targets": TARGETS, "lengths": LENGTHS}
    expected = apply(variables, TOKENS, **options)
    assert_close(apply(cast(variables, jnp.bfloat16), TOKENS, **options), expected, 3e-2)


@pytest.mark.parametrize(
    ("changes", "inputs", "options", "message"),
    [
        ({}, TOKENS[0], {}, r"inputs must have shape \[B, T\], got \[6\]"),
        ({}, TOKENS * 1.0, {}, "tokens must be integers, got float"),
        ({}, TOKENS, {"targets": TARGETS[:2]}, r"targets .*\[B=3, S\], got \[2, 5\]"),
        ({}, TOKENS, {"lengths": LENGTHS[:2]}, r"lengths .*B=3\], got \[2\]"),
        ({"cell": "gpu"}, TOKENS, {}, "cell must be 'rnn' or 'lstm' or 'gru', got 'gpu'"),
        ({"attention": "none"}, TOKENS, {}, "attention must be 'additive' or 'dot', got 'none'"),
        ({"hidden_size": 7}, TOKENS, {}, "hidden_size must be even for a bidirectional .* got 7"),
        ({"target_vocab_size": 0}, TOKENS, {}, "target_vocab_size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_message(changes, inputs, options, message):
    model = MODEL.clone(**changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(model.init, **{"targets": TARGETS} | options), KEY, inputs)
