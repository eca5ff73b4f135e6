"""RNN, LSTM and GRU: the numbers of PyTorch, and results that padding cannot change."""

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

from flaxdl.layers import GRU, LSTM, RNN

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
LENGTHS = np.array([7, 4, 2])


def reference_case(name, dtype=np.float32):
    """The layer that the golden values were computed with, its parameters and its inputs."""
    layer = CELLS[name](hidden_size=16, num_layers=2, bidirectional=True)
    inputs = jnp.asarray(reference.inputs("sequence", (3, 7, 12)), dtype)
    return layer, reference_variables(layer, name, dtype, inputs), inputs


def final_states(name, state):
    return dict(zip(("h_n", "c_n"), state, strict=True)) if name == "lstm" else {"h_n": state}


@pytest.mark.quick
@pytest.mark.parametrize("name", CELLS)
def test_golden_values(name):
    with jax.enable_x64(True):
        layer, variables, inputs = reference_case(name, np.float64)
        for prefix, lengths in (("", None), ("packed_", LENGTHS)):
            output, state = layer.apply(variables, inputs, lengths=lengths)
            assert_close(output, reference.golden(f"{name}/{prefix}output"), 1e-7)
            for key, value in final_states(name, state).items():
                if f"{name}/{prefix}{key}" in reference.GOLDEN:
                    assert_close(value, reference.golden(f"{name}/{prefix}{key}"), 1e-7)


@pytest.mark.parametrize("name", CELLS)
def test_golden_gradients(name):
    with jax.enable_x64(True):
        layer, variables, inputs = reference_case(name, np.float64)
        gradients = jax.grad(lambda v: jnp.sum(layer.apply(v, inputs)[0] ** 2))(variables)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
        for key, theirs in reference.golden_with_prefix(f"{name}/grad:").items():
            assert_close(gradients["params"][key], theirs, 1e-7, largest)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_golden_values_in_lower_precision(name, dtype, tolerance):
    layer, variables, inputs = reference_case(name, dtype)
    output, state = layer.apply(variables, inputs, lengths=LENGTHS)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, state))} == {jnp.dtype(dtype)}
    assert_close(output, reference.golden(f"{name}/packed_output"), tolerance)


@pytest.mark.parametrize("name", CELLS)
def test_names_and_shapes(name):
    _, variables, _ = reference_case(name)
    assert names_and_shapes(variables) == reference.STATE_DICTS[name]


@st.composite
def recurrent_cases(draw):
    batch_size, num_steps = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    length = st.integers(1, num_steps)
    return {
        "name": draw(st.sampled_from(["rnn_tanh", "rnn_relu", "lstm", "gru"])),
        "shape": (batch_size, num_steps, draw(st.integers(1, 5))),
        "hidden_size": draw(st.integers(1, 5)),
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "lengths": draw(st.none() | st.lists(length, min_size=batch_size, max_size=batch_size)),
        "initial_state": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


@settings(max_examples=8, deadline=None, derandomize=True)
@given(recurrent_cases())
def test_live_parity(case):
    """Outputs, final states and every gradient, those of inputs and initial state included."""
    torch = pytest.importorskip("torch")
    name, _, nonlinearity = case["name"].partition("_")
    options = {"hidden_size": case["hidden_size"], "num_layers": case["num_layers"]}
    options |= {"bidirectional": case["bidirectional"]}
    options |= {"nonlinearity": nonlinearity} if nonlinearity else {}
    torch.manual_seed(case["seed"])
    theirs = getattr(torch.nn, name.upper())(case["shape"][2], batch_first=True, **options).double()

    random = np.random.default_rng(case["seed"])
    inputs = random.standard_normal(case["shape"])
    num_states = case["num_layers"] * (1 + case["bidirectional"])
    initial = random.standard_normal((2, num_states, case["shape"][0], case["hidden_size"]))
    with jax.enable_x64(True):
        ours = CELLS[name](**options)
        params = torch_variables(ours, theirs, inputs)
        lengths = None if case["lengths"] is None else jnp.array(case["lengths"])

        def loss(params, inputs, initial):
            state = (initial[0], initial[1]) if name == "lstm" else initial[0]
            state = state if case["initial_state"] else None
            results = ours.apply(params, inputs, lengths=lengths, initial_state=state)
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(results)), results

        arguments = (params, jnp.asarray(inputs), jnp.asarray(initial))
        gradients, results = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arguments)

    x = torch.tensor(inputs, requires_grad=True)
    h = torch.tensor(initial, requires_grad=True)
    state = ((h[0], h[1]) if name == "lstm" else h[0]) if case["initial_state"] else None
    if case["lengths"] is None:
        output, state = theirs(x, state)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(case["lengths"]), batch_first=True, enforce_sorted=False
        )
        output, state = theirs(packed, state)
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(
            output, batch_first=True, total_length=case["shape"][1]
        )
    results_there = [output, *(state if name == "lstm" else [state])]
    sum(torch.sin(result).sum() for result in results_there).backward()
    for mine, other in zip(jax.tree.leaves(results), results_there, strict=True):
        assert_close(mine, other.detach().numpy(), 1e-9)
    assert_gradients_match(gradients[0], theirs)
    largest = max(parameter.grad.abs().max().item() for parameter in theirs.parameters())
    assert_close(gradients[1], x.grad.numpy(), 1e-9, largest)
    if case["initial_state"]:
        assert_close(gradients[2], h.grad.numpy(), 1e-9, largest)


@pytest.mark.parametrize("name", CELLS)
def test_padding_has_no_effect(name):
    layer, variables, inputs = reference_case(name)
    output, state = layer.apply(variables, inputs, lengths=LENGTHS)
    longer = jnp.pad(inputs, ((0, 0), (0, 4), (0, 0)), constant_values=1e6)
    is_real = np.arange(11)[:, None] < LENGTHS
    longer = jnp.where(is_real.T[:, :, None], longer, 1e6)
    padded_output, padded_state = layer.apply(variables, longer, lengths=LENGTHS)
    np.testing.assert_allclose(padded_output[:, :7], output, rtol=1e-6, atol=1e-7)
    assert not np.any(padded_output[:, 7:])
    for mine, other in zip(jax.tree.leaves(padded_state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-7)


def test_length_zero_keeps_the_initial_state():
    layer, variables, inputs = reference_case("gru")
    initial = jnp.full((4, 3, 16), 0.5)
    output, state = layer.apply(
        variables, inputs, lengths=np.array([7, 0, 0]), initial_state=initial
    )
    assert not np.any(output[1:])
    np.testing.assert_array_equal(state[:, 1:], initial[:, 1:])


def test_dropout_acts_between_layers_and_in_training_only():
    inputs = jnp.asarray(reference.inputs("sequence", (3, 7, 12)))
    keys = {"dropout": jax.random.key(1)}
    one, two = (GRU(hidden_size=8, num_layers=n, dropout=0.5) for n in (1, 2))
    for layer, differs in ((one, False), (two, True)):
        variables = jax.jit(layer.init)(jax.random.key(0), inputs)
        plain = layer.apply(variables, inputs)[0]
        dropped = layer.apply(variables, inputs, train=True, rngs=keys)[0]
        assert np.array_equal(plain, dropped) != differs


def test_initial_weights_are_uniform_within_the_root_of_the_hidden_size():
    variables = LSTM(hidden_size=64).init(jax.random.key(0), jnp.zeros((1, 2, 300)))
    for leaf in jax.tree.leaves(variables):
        assert 0.9 / 8 < np.abs(leaf).max() <= 1 / 8
        assert abs(np.std(leaf) * np.sqrt(3) * 8 - 1) < 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": np.zeros((3, 12))}, r"inputs must have shape \[B, T, I\], got \[3, 12\]"),
        ({"inputs": np.zeros((3, 7, 5))}, r"inputs .* I=12\], got \[3, 7, 5\]"),
        ({"lengths": np.array([7, 4])}, r"lengths .* got \[2\]"),
        ({"lengths": np.array([7.0, 4.0, 2.0])}, "lengths must be integers"),
        ({"initial_state": np.zeros((2, 3, 16))}, r"initial_state .*N=4"),
        ({"initial_state": (np.zeros((4, 3, 16)),) * 2}, "initial_state must have the structure"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    layer, variables, inputs = reference_case("gru")
    arguments = {"inputs": inputs, **arguments}
    with pytest.raises(ValueError, match=message):
        layer.apply(variables, arguments.pop("inputs"), **arguments)
