"""RNNLM: PyTorch's results, a state that is carried, and generation from it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.learning import overfit
from helpers.parity import (
    assert_close,
    assert_gradients_match,
    result_dtypes,
    torch_variables,
    with_inputs,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxdl.layers import Dropout
from flaxdl.models import RNNLM, generate
from flaxdl.training import LanguageModeling
from flaxdl.weights import load_weights, state_dict

SMALL = {"vocab_size": 11, "embedding_size": 6, "hidden_size": 6}
LM = RNNLM(num_layers=2, **SMALL)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
LENGTHS = np.array([6, 4, 1])


def initial(model):
    """Variables with larger values than the initial ones, so that predictions differ."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape).astype(x.dtype), shapes)


def torch_model(torch, cell, num_layers, tie_weights, hidden_size):
    """The model of PyTorch's example `word_language_model`, with the batch as first axis."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(11, 6)
            self.rnn = getattr(torch.nn, cell.upper())(6, hidden_size, num_layers, batch_first=True)
            self.decoder = torch.nn.Linear(hidden_size, 11)
            if tie_weights:
                self.decoder.weight = self.encoder.weight

        def forward(self, tokens, lengths, hidden):
            x = torch.nn.utils.rnn.pack_padded_sequence(
                self.encoder(tokens), lengths, batch_first=True, enforce_sorted=False
            )
            x, hidden = self.rnn(x, hidden)
            x, _ = torch.nn.utils.rnn.pad_packed_sequence(
                x, batch_first=True, total_length=tokens.shape[1]
            )
            return self.decoder(x), hidden

    return Model().double()


@pytest.fixture(scope="module", params=["lstm", "gru", "tied lstm", "tied gru"])
def twins(request):
    """The model in PyTorch, and a compiled function of ours: tokens, lengths, state → gradients."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    *tied, cell = request.param.split()
    case = {"cell": cell, "num_layers": 2, "tie_weights": bool(tied)}
    case["hidden_size"] = 6 if tied else 5
    theirs = torch_model(torch, **case)
    with jax.enable_x64(True):
        ours = RNNLM(**SMALL | case)
        variables = torch_variables(ours, theirs, TOKENS)

        def loss(variables, tokens, lengths, state):
            given = {"lengths": lengths, "train": True, "method": "read"}
            results = ours.apply(variables, tokens, state, **given)
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(results)), results

        return theirs, partial(jax.jit(jax.grad(loss, has_aux=True)), variables)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 1000))
def test_live_parity(twins, lengths, seed):
    """Logits, final states and every gradient, from a state that is not zero."""
    import torch

    theirs, gradients_of = twins
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 11, (3, 6))
    state = tuple(rng.normal(size=(2, 2, 3, theirs.rnn.hidden_size)))
    state = state if theirs.rnn.mode == "LSTM" else state[0]
    hidden = jax.tree.map(torch.tensor, state)
    theirs.zero_grad()
    there, final = theirs(torch.tensor(tokens), torch.tensor(lengths), hidden)
    expected = [there, *jax.tree.leaves(final)]
    sum(x.sin().sum() for x in expected).backward()
    with jax.enable_x64(True):
        gradients, results = gradients_of(tokens, np.array(lengths), state)
    for mine, other in zip(jax.tree.leaves(results), expected, strict=True):
        assert_close(mine, other.detach().numpy(), 1e-9)
    assert_gradients_match(gradients, theirs)


def test_initial_values_are_those_of_pytorchs_example():
    model = RNNLM(vocab_size=50, embedding_size=40, hidden_size=40)
    for tie_weights in (False, True):
        model = model.clone(tie_weights=tie_weights)
        weights = state_dict(model.init(jax.random.key(0), TOKENS))
        for key in ("encoder.weight", "decoder.weight"):
            assert weights[key].shape == (50, 40)
            assert np.abs(weights[key]).max() == pytest.approx(0.1, rel=0.01)
            assert np.abs(weights[key]).mean() == pytest.approx(0.05, rel=0.05)
        assert not weights["decoder.bias"].any()
        is_same = np.array_equal(weights["encoder.weight"], weights["decoder.weight"])
        assert is_same == tie_weights


def test_tied_weights_are_the_same_in_a_file():
    shapes = jax.eval_shape(LM.clone(tie_weights=True).init, jax.random.key(0), TOKENS)
    weights = {
        key: np.zeros(x.shape, x.dtype) if key.endswith("bias") else np.full(x.shape, 2, x.dtype)
        for key, x in state_dict(shapes).items()
    }
    loaded = load_weights(shapes, weights)
    assert list(loaded["params"]["decoder"]) == ["bias"]
    missing = {key: x for key, x in weights.items() if key != "encoder.weight"}
    assert state_dict(load_weights(shapes, missing)).keys() == weights.keys()
    weights["decoder.weight"] = weights["decoder.weight"] + 1
    with pytest.raises(ValueError, match="decoder.weight differs from encoder.weight, which is"):
        load_weights(shapes, weights)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_reading_in_parts_equals_reading_all(cell):
    model = LM.clone(cell=cell)
    variables = initial(model)
    read = jax.jit(lambda *given, **kw: model.apply(variables, *given, **kw, method="read"))
    expected, last = read(TOKENS)
    state = model.initial_state(3)
    assert jax.tree.structure(state) == jax.tree.structure(last)
    parts = []
    for start in range(0, 6, 2):
        logits, state = read(TOKENS[:, start : start + 2], state)
        parts.append(logits)
    assert_close(jnp.concatenate(parts, axis=1), expected, 1e-6)
    for mine, other in zip(jax.tree.leaves(state), jax.tree.leaves(last), strict=True):
        assert_close(mine, other, 1e-6)


def test_burn_in_scores_the_text_as_if_it_were_read_at_once():
    """With a burn-in of the whole text before, windows have the losses of sequential evaluation."""
    text, variables, task = TOKENS.reshape(1, 18), initial(LM), LanguageModeling()
    apply = jax.jit(LM.apply)
    whole, _ = task.losses(apply(variables, text), {"inputs": text, "weight": np.ones(1)})
    parts = {
        "inputs": np.repeat(text, 3, axis=0),
        "burn_in": np.array([1, 8, 13]),
        "lengths": np.array([8, 13, 18]),
        "weight": np.ones(3),
    }
    logits = apply(variables, parts["inputs"], lengths=parts["lengths"])
    losses, weights = task.losses(logits, parts)
    np.testing.assert_array_equal(weights.sum(0), np.ones(17))
    assert_close((losses * weights).sum(0), whole[0], 1e-5)


@pytest.mark.parametrize(
    "options", [{"cell": "lstm"}, {"cell": "gru", "tie_weights": True}], ids=["lstm", "tied gru"]
)
def test_generation_from_the_state_equals_reading_all_again(options):
    model = LM.clone(**options)
    variables = initial(model)
    lengths = np.array([4, 2, 1])
    ours = generate(model, variables, TOKENS[:, :4], num_tokens=5, lengths=lengths)
    apply = jax.jit(model.apply)
    expected = np.where(np.arange(9) < lengths[:, None], np.pad(TOKENS[:, :4], ((0, 0), (0, 5))), 0)
    for position in range(1, 9):
        chosen = apply(variables, expected)[:, position - 1].argmax(-1)
        expected[:, position] = np.where(position < lengths, expected[:, position], chosen)
    np.testing.assert_array_equal(ours, expected)
    assert len(np.unique(ours)) > 3


def test_generation_draws_from_the_options():
    variables, key = initial(LM), jax.random.key(0)
    greedy = generate(LM, variables, TOKENS, num_tokens=6)
    options = {"temperature": 1.0, "top_k": 1, "key": key, "end_token": int(greedy[0, 7])}
    drawn = generate(LM, variables, TOKENS, num_tokens=6, **options)
    np.testing.assert_array_equal(drawn[0], np.where(np.arange(12) < 8, greedy[0], 0))
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        generate(LM, variables, TOKENS, num_tokens=2, top_k=0)


def test_dropout_is_applied_to_embeddings_between_layers_and_to_outputs():
    model = RNNLM(vocab_size=11, embedding_size=32, hidden_size=32, num_layers=2, dropout=0.25)
    tokens = np.tile(TOKENS, (4, 4))
    variables = jax.jit(model.init)(jax.random.key(0), tokens)

    @partial(jax.jit, static_argnames="train")
    def run(train):
        logits, found = model.apply(
            variables,
            tokens,
            train=train,
            rngs={"dropout": jax.random.key(1)},
            capture_intermediates=lambda module, _: isinstance(module, Dropout),
            mutable=["intermediates"],
        )
        found = found["intermediates"]
        return logits, *found["drop"]["__call__"], *found["rnn"]["dropout"]["__call__"]

    logits, embedded, outputs, between = run(train=True)
    for x in (embedded, outputs, between):
        assert np.mean(x == 0) == pytest.approx(0.25, abs=0.02)
    assert np.mean((embedded == 0) == (outputs == 0)) < 0.7  # not the same mask twice
    plain = variables["params"]["encoder"]["embedding"][tokens]
    np.testing.assert_allclose(embedded, np.where(embedded == 0, 0, plain / 0.75), rtol=1e-6)
    decoder = variables["params"]["decoder"]
    assert_close(logits, outputs @ decoder["kernel"] + decoder["bias"], 1e-6)
    assert not np.any(run(train=False)[1] == 0)


def test_models_learn():
    model = RNNLM(vocab_size=11, embedding_size=12, hidden_size=12, cell="gru", tie_weights=True)
    following = np.roll(TOKENS[:1], -1, axis=1)
    assert overfit(with_inputs(model), TOKENS[:1], following, steps=80, learning_rate=0.05) == 1


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_models_stay_in_the_dtype_of_their_parameters(tie_weights, dtype):
    model = LM.clone(tie_weights=tie_weights)
    with jax.enable_x64(True):
        assert result_dtypes(model, dtype, TOKENS, lengths=LENGTHS) == {jnp.dtype(dtype)}


@pytest.mark.parametrize(
    ("options", "tokens", "message"),
    [
        ({}, TOKENS[0], r"tokens must have shape \[B, T\], got \[6\]"),
        ({}, TOKENS * 1.0, "tokens must be integers, got float"),
        ({"cell": "tree"}, TOKENS, "cell must be 'rnn' or 'lstm' or 'gru', got 'tree'"),
        (
            {"tie_weights": True, "hidden_size": 8},
            TOKENS,
            "tie_weights requires embedding_size and hidden_size to be equal, got 6 and 8",
        ),
    ],
)
def test_wrong_arguments_are_named(options, tokens, message):
    with pytest.raises(ValueError, match=message):
        RNNLM(**SMALL | options).init(jax.random.key(0), tokens)


def test_a_wrong_state_is_named():
    variables = initial(LM)
    for state, message in (
        (jnp.zeros((2, 3, 6)), "initial_state must have the structure"),
        (LM.initial_state(2), r"initial_state must have shape .*got \[2, 2, 6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            LM.apply(variables, TOKENS, state, method="read")
