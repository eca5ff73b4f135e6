"""SimpleRNN and TextRNN: the course's results, and results that do not depend on padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace, overfit
from helpers.parity import (
    assert_close,
    assert_gradients_match,
    names_and_shapes,
    reference_variables,
    result_dtypes,
    torch_variables,
    with_inputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxdl.models import SimpleRNN, TextRNN

SIMPLE = SimpleRNN(hidden_size=16, num_classes=3)
TEXT = TextRNN(vocab_size=50, embedding_size=12, hidden_size=16, num_classes=4)
TOKENS = reference.golden("TextRNN/token_ids").astype(np.int32)
LENGTHS = np.array([7, 4, 2])
SMALL = {"vocab_size": 9, "embedding_size": 4, "hidden_size": 6, "num_classes": 3}
PRECISIONS = [
    (jnp.float64, 1e-7),
    pytest.param(jnp.float32, 1e-5, marks=pytest.mark.quick),
    (jnp.bfloat16, 3e-2),
]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_golden_values(dtype, tolerance):
    with jax.enable_x64(True):
        sequence = jnp.asarray(reference.inputs("sequence", (3, 7, 12)), dtype)
        for model, name, inputs in (
            (SIMPLE, "SimpleRNN", sequence),
            (TEXT, "TextRNN", jnp.asarray(TOKENS)),
        ):
            variables = reference_variables(model, name, dtype, inputs)
            logits = model.apply(variables, inputs)
            assert logits.dtype == dtype
            assert_close(logits, reference.golden(f"{name}/logits"), tolerance)
            assert names_and_shapes(variables) == reference.STATE_DICTS[name]


def course_text_rnn(torch, cell, **sizes):
    """The course's class, with options for the cell, the directions and the number of layers."""

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(
                sizes["vocab_size"], sizes["embedding_size"], padding_idx=0
            )
            self.rnn = getattr(torch.nn, cell.upper())(
                sizes["embedding_size"],
                sizes["hidden_size"],
                batch_first=True,
                num_layers=sizes["num_layers"],
                bidirectional=sizes["bidirectional"],
            )
            width = sizes["hidden_size"] * (1 + sizes["bidirectional"])
            self.fc = torch.nn.Linear(width, sizes["num_classes"])

        def forward(self, tokens):
            return self.fc(self.rnn(self.embedding(tokens))[0][:, -1])

    return Text()


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.sampled_from(["rnn", "lstm", "gru"]),
    st.booleans(),
    st.integers(1, 2),
    st.integers(0, 1000),
)
def test_live_parity(cell, bidirectional, num_layers, seed):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    options = {**SMALL, "num_layers": num_layers, "bidirectional": bidirectional}
    theirs = course_text_rnn(torch, cell, **options).double()
    tokens = np.random.default_rng(seed).integers(0, 9, (3, 5))
    there = theirs(torch.tensor(tokens))
    torch.sin(there).sum().backward()

    with jax.enable_x64(True):
        ours = TextRNN(cell=cell, **options)
        variables = torch_variables(ours, theirs, tokens)

        def loss(variables):
            logits = ours.apply(variables, jnp.asarray(tokens), train=True)
            return jnp.sin(logits).sum(), logits

        gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert_close(logits, there.detach().numpy(), 1e-9)
    assert_gradients_match(gradients, theirs)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_padding_has_no_effect_on_final_states(cell):
    text = TextRNN(cell=cell, pooling="final_states", **SMALL)
    simple = SimpleRNN(hidden_size=6, num_classes=3, cell=cell)
    sequence = jnp.asarray(reference.inputs("sequence", (3, 7, 12)))
    for model, inputs, padding in ((text, jnp.asarray(TOKENS % 9), 5), (simple, sequence, 1e3)):
        variables = jax.jit(model.init)(jax.random.key(0), inputs)
        apply = jax.jit(model.apply)
        expected = apply(variables, inputs, lengths=LENGTHS)
        widths = [(0, 0), (0, 3)] + [(0, 0)] * (inputs.ndim - 2)
        longer = jnp.pad(inputs, widths, constant_values=padding)
        ours = apply(variables, longer, lengths=LENGTHS)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        alone = apply(variables, inputs[1:2, :4])  # a text alone reads as in its batch
        np.testing.assert_allclose(alone[0], expected[1], rtol=1e-5, atol=1e-6)


def test_final_states_are_the_last_step_of_a_forward_layer_without_padding():
    forward = TextRNN(bidirectional=False, **SMALL)
    variables = jax.jit(forward.init)(jax.random.key(0), TOKENS % 9)
    final = forward.clone(pooling="final_states").apply(variables, TOKENS % 9)
    np.testing.assert_allclose(final, forward.apply(variables, TOKENS % 9), rtol=1e-6)


def test_the_last_step_is_the_last_real_token():
    model = TextRNN(**SMALL)
    tokens = TOKENS % 9
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    ours = jax.jit(model.apply)(variables, tokens, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone = model.apply(variables, tokens[row : row + 1, :length])
        np.testing.assert_allclose(ours[row], alone[0], rtol=1e-5, atol=1e-6)
    assert np.isfinite(model.apply(variables, tokens, lengths=np.zeros(len(tokens), int))).all()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_text_rnn_learns(cell):
    tokens = np.array([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 0, 0]])
    model = TextRNN(cell=cell, pooling="final_states", **SMALL)
    model = with_inputs(model, lengths=np.array([4, 2, 2]))
    assert_every_parameter_learns(model, tokens)
    assert_no_second_trace(model, tokens)
    labels = np.array([0, 1, 2])
    assert overfit(model, tokens, labels, steps=60, learning_rate=0.05) == 1


def test_simple_rnn_learns():
    sequence = jnp.asarray(reference.inputs("sequence", (3, 7, 12)))
    model = with_inputs(SimpleRNN(hidden_size=8, num_classes=3))
    assert_every_parameter_learns(model, sequence)
    assert overfit(model, sequence, np.array([0, 1, 2]), steps=60, learning_rate=0.05) == 1


def test_the_embedding_of_padding_is_zero_and_gets_no_gradient():
    model = TextRNN(**SMALL)
    tokens = np.array([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 0, 0]])
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    assert not np.any(variables["params"]["embedding"]["embedding"][0])
    gradients = jax.grad(lambda v: jnp.sum(model.apply(v, tokens, train=True)))(variables)
    table = gradients["params"]["embedding"]["embedding"]
    np.testing.assert_array_equal(np.any(table, axis=1), np.arange(9) > 0)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_models_stay_in_the_dtype_of_their_parameters(cell, dtype):
    with jax.enable_x64(True):
        model = TextRNN(cell=cell, pooling="final_states", **SMALL)
        assert result_dtypes(model, dtype, TOKENS, lengths=LENGTHS) == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (SIMPLE, np.zeros((3, 12), np.float32), {}, r"inputs .*\[B, T, I\], got \[3, 12\]"),
        (TEXT, np.zeros((3, 4, 1), int), {}, r"tokens .*\[B, T\], got \[3, 4, 1\]"),
        (TEXT, np.zeros((3, 4), np.float32), {}, "tokens must be integers, got float32"),
        (TEXT.clone(cell="tree"), TOKENS, {}, "cell must be 'rnn' or 'lstm' or 'gru', got 'tree'"),
        (TEXT.clone(pooling="max"), TOKENS, {}, "pooling must be 'last_step' or .* got 'max'"),
    ],
)
def test_wrong_arguments_are_named(model, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), inputs, **options)
