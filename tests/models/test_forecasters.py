"""RNNForecaster and LinearForecaster: PyTorch's values, and series that drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace
from helpers.parity import assert_close, assert_gradients_match, result_dtypes, torch_variables

from flaxdl.models import LinearForecaster, RNNForecaster
from flaxdl.weights import load_weights, state_dict

SERIES = np.random.default_rng(0).standard_normal((3, 9, 2)).astype(np.float32)
RECURRENT = RNNForecaster(horizon=4, hidden_size=6)
LINEAR = LinearForecaster(horizon=4)


def torch_forecaster(torch, cell, num_layers):
    """The model in plain PyTorch; the linear one without a cell."""

    class Forecaster(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if cell is None:
                self.linear = torch.nn.Linear(9, 4)
                return
            kind = getattr(torch.nn, cell.upper())
            self.rnn = kind(2, 6, num_layers=num_layers, batch_first=True)
            self.fc = torch.nn.Linear(6, 4 * 2)

        def forward(self, x):
            if cell is None:
                return self.linear(x.transpose(1, 2)).transpose(1, 2)
            outputs, _ = self.rnn(x)
            return x[:, -1:] + self.fc(outputs[:, -1]).reshape(-1, 4, 2)

    return Forecaster().double()


@pytest.mark.parametrize(("cell", "num_layers"), [("rnn", 1), ("lstm", 2), ("gru", 1), (None, 0)])
def test_equals_pytorch(cell, num_layers):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_forecaster(torch, cell, num_layers)
    model = LINEAR if cell is None else RECURRENT.clone(cell=cell, num_layers=num_layers)
    there = theirs(torch.tensor(SERIES, dtype=torch.float64))
    torch.sin(there).sum().backward()
    with jax.enable_x64(True):
        inputs = jnp.asarray(SERIES, jnp.float64)
        variables = torch_variables(model, theirs, inputs)

        def loss(variables):
            outputs = model.apply(variables, inputs, train=True)
            return jnp.sin(outputs).sum(), outputs

        gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(variables)
    assert_close(outputs, there.detach().numpy(), 1e-9)
    assert_gradients_match(gradients, theirs)


@pytest.mark.parametrize("model", [RECURRENT, LINEAR], ids=lambda model: type(model).__name__)
def test_properties_of_every_model(model):
    assert_every_parameter_learns(model, SERIES)
    assert_no_second_trace(model, SERIES)
    variables = jax.jit(model.init)(jax.random.key(0), SERIES)
    again = load_weights(variables, state_dict(variables))
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.bfloat16):
            assert result_dtypes(model, dtype, SERIES.astype(dtype)) == {jnp.dtype(dtype)}


def test_an_untrained_output_layer_repeats_the_last_value():
    variables = RECURRENT.init(jax.random.key(0), SERIES)
    zeros = jax.tree.map(np.zeros_like, variables["params"]["fc"])
    params = {**variables["params"], "fc": zeros}
    np.testing.assert_array_equal(
        RECURRENT.apply({"params": params}, SERIES), np.repeat(SERIES[:, -1:], 4, axis=1)
    )


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (RECURRENT, SERIES[0], r"inputs must have shape \[B, T, C\], got \[9, 2\]"),
        (LINEAR, SERIES[0], r"inputs must have shape \[B, T, C\], got \[9, 2\]"),
        (RECURRENT.clone(cell="tree"), SERIES, "cell must be 'rnn' or 'lstm' or 'gru'"),
        (RECURRENT.clone(horizon=None), SERIES, "horizon is None, and there is no dataset"),
        (LINEAR.clone(horizon=0), SERIES, "horizon must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), inputs)


def test_another_context_is_named():
    variables = LINEAR.init(jax.random.key(0), SERIES)
    with pytest.raises(ValueError, match=r"inputs of linear must have shape .*I=9\]"):
        LINEAR.apply(variables, SERIES[:, :5])
