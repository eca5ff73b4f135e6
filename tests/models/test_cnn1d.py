"""CNN1d: PyTorch's values, and results that do not depend on padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.image_parity import assert_live_parity
from helpers.learning import assert_every_parameter_learns, assert_no_second_trace, overfit
from helpers.parity import assert_close, cast, names_and_shapes, with_inputs

from flaxdl.analysis.layers import inspect
from flaxdl.models import CNN1d
from flaxdl.weights import load_weights, state_dict

SMALL = CNN1d(num_classes=3, filters=(6, 8, 5))
SERIES = np.random.default_rng(0).standard_normal((4, 11, 2)).astype(np.float32)
LENGTHS = np.array([11, 7, 4, 1])


def torch_model(torch, channels, filters, kernel_sizes, num_classes):
    """The architecture of the paper in plain PyTorch, with series [B, C, T]."""
    nn = torch.nn

    class FCN(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = zip((channels, *filters), filters, kernel_sizes, strict=False)
            for number, (before, after, size) in enumerate(sizes, start=1):
                setattr(self, f"conv{number}", nn.Conv1d(before, after, size, padding="same"))
                setattr(self, f"bn{number}", nn.BatchNorm1d(after))
            self.fc = nn.Linear(filters[-1], num_classes)

        def forward(self, x):
            for conv, bn in (
                (self.conv1, self.bn1),
                (self.conv2, self.bn2),
                (self.conv3, self.bn3),
            ):
                x = torch.relu(bn(conv(x)))
            return self.fc(x.mean(-1))

    return FCN()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("length", "filters", "kernel_sizes"),
    [(20, (128, 256, 128), (8, 5, 3)), (3, (6, 8, 5), (8, 5, 3)), (9, (6, 8, 5), (4, 1, 2))],
)
def test_equals_pytorch(length, filters, kernel_sizes, train):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_model(torch, 2, filters, kernel_sizes, num_classes=5)
    for bn in (theirs.bn1, theirs.bn2, theirs.bn3):
        torch.nn.init.uniform_(bn.running_mean, -1, 1)
        torch.nn.init.uniform_(bn.running_var, 0.5, 2)
    inputs = np.random.default_rng(0).standard_normal((3, 2, length))
    assert_live_parity(CNN1d(5, filters, kernel_sizes), theirs, inputs, train=train)


def test_has_the_parameters_of_the_paper():
    variables = jax.eval_shape(CNN1d(num_classes=10).init, jax.random.key(0), SERIES[:, :, :1])
    shapes = names_and_shapes(variables)
    assert shapes["conv1.weight"] == [128, 1, 8]
    assert shapes["conv2.weight"] == [256, 128, 5]
    assert shapes["conv3.weight"] == [128, 256, 3]
    assert shapes["fc.weight"] == [10, 128]


def test_inspect_follows_the_window_over_time():
    rows = {row.name: row for row in inspect(CNN1d(num_classes=10), SERIES, lengths=LENGTHS)}
    fields = [rows[f"conv{number}"].receptive_field for number in (1, 2, 3)]
    assert [field[0] for field in fields] == [8, 12, 14]
    assert rows["conv1"].flops == 2 * 4 * 11 * 8 * 2 * 128


def test_weights_round_trip():
    variables = jax.jit(SMALL.init)(jax.random.key(0), SERIES)
    again = load_weights(variables, state_dict(variables))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.fixture(scope="module")
def variables():
    """Variables in float64 with running statistics that are not those of the beginning."""
    with jax.enable_x64(True):
        drawn = cast(SMALL.init(jax.random.key(0), SERIES), jnp.float64)
        rng = np.random.default_rng(1)
        statistics = jax.tree.map(
            lambda x: jnp.asarray(rng.uniform(0.5, 2, x.shape)), drawn["batch_stats"]
        )
    return {**drawn, "batch_stats": statistics}


def padded(by):
    """The series with other values after their ends, NaN among them, and more padding."""
    series = np.pad(SERIES.astype(np.float64), ((0, 0), (0, by), (0, 0)))
    series[np.arange(11 + by) >= LENGTHS[:, None]] = np.nan
    return series


def test_a_padded_series_is_classified_as_it_is_alone(variables):
    with jax.enable_x64(True):
        logits = SMALL.apply(variables, padded(3), lengths=LENGTHS)
        for row, length in enumerate(LENGTHS):
            alone = SMALL.apply(variables, jnp.asarray(SERIES[row : row + 1, :length], jnp.float64))
            assert_close(logits[row], alone[0], 1e-12)
        full = SMALL.apply(variables, SERIES, lengths=np.full(4, 11))
        assert_close(full, SMALL.apply(variables, SERIES), 1e-12)


def test_training_does_not_depend_on_padding(variables):
    def step(params, inputs, lengths):
        logits, updates = SMALL.apply(
            {**variables, "params": params},
            inputs,
            lengths=lengths,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(jnp.sin(logits)), (logits, updates)

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(step, has_aux=True))
        found = [gradient(variables["params"], padded(by), LENGTHS) for by in (0, 5)]
        jax.tree.map(lambda x, y: assert_close(x, y, 1e-9, scale=1), *found)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found[0]))
        of_full = [gradient(variables["params"], SERIES, n) for n in (None, np.full(4, 11))]
        jax.tree.map(lambda x, y: assert_close(x, y, 1e-9, scale=1), *of_full)


def test_learns():
    assert_every_parameter_learns(SMALL, SERIES)
    model = with_inputs(SMALL, lengths=LENGTHS)
    assert overfit(model, SERIES, np.array([0, 1, 2, 1]), steps=40, learning_rate=0.02) == 1


def test_traces_once():
    assert_no_second_trace(SMALL, SERIES)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_computes_in_the_dtype_it_is_given(variables, dtype, tolerance):
    with jax.enable_x64(True):
        exact = SMALL.apply(variables, SERIES, lengths=LENGTHS)
        narrow = {**variables, "params": cast(variables["params"], dtype)}
        logits = SMALL.apply(narrow, SERIES.astype(dtype), lengths=LENGTHS)
    assert logits.dtype == dtype
    assert_close(logits, exact, tolerance)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (np.zeros((3, 12)), {}, r"inputs .*\[B, T, C\], got \[3, 12\]"),
        (SERIES, {"lengths": np.array([3, 2])}, r"lengths must have shape \[B=4\], got \[2\]"),
        (SERIES, {"lengths": np.ones(4)}, "lengths must be integers, got float"),
        (SERIES[:, :, :1], {}, r"inputs of conv1 must have shape .*C=2\], got .*"),
    ],
)
def test_wrong_arguments_are_named(variables, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        SMALL.apply(variables, inputs, **options)
