"""Forecasting: losses as PyTorch's, and metrics by hand in the series' own units."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.errors import UserError
from flaxdl.training import Forecasting
from flaxdl.training.metrics import MetricSums

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
OUTPUTS = RNG.normal(0, 2, (3, 4, 2)).astype(np.float32)
SCALE, NAIVE_ERROR = np.array([10.0, 0.5]), np.array([4.0, 0.25])
BATCH = {
    "inputs": np.zeros((3, 5, 2), np.float32),
    "label": RNG.normal(0, 2, (3, 4, 2)).astype(np.float32),
    "naive": RNG.normal(0, 2, (3, 4, 2)).astype(np.float32),
    "scale": np.tile(SCALE, (3, 1)),
    "naive_error": np.tile(NAIVE_ERROR, (3, 1)),
    "weight": np.array([1, 1, 0], np.float32),
}


def measured(*batches):
    task = Forecasting()
    sums = None
    for outputs, batch in batches:
        batch = {name: jnp.asarray(array, jnp.float32) for name, array in batch.items()}
        more = MetricSums.of(task.metrics(jnp.asarray(outputs), batch))
        sums = more if sums is None else sums + more
    return task.finish(sums.means())


def test_metrics_by_hand():
    found = measured((OUTPUTS, BATCH))
    error = (OUTPUTS - BATCH["label"])[:2] * SCALE  # the third window has weight 0
    naive = np.abs(BATCH["naive"] - BATCH["label"])[:2] * SCALE
    assert found["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-6)
    assert found["mase"] == pytest.approx((np.abs(error) / NAIVE_ERROR).mean(), rel=1e-6)
    assert found["naive_mae"] == pytest.approx(naive.mean(), rel=1e-6)
    assert found["relative_mae"] == pytest.approx(np.abs(error).mean() / naive.mean(), rel=1e-6)
    assert found["loss"] == pytest.approx(np.square(error / SCALE).mean(), rel=1e-6)


def test_rmse_is_that_of_all_windows_and_not_a_mean_of_batches():
    parts = [(OUTPUTS[[i]], {k: x[[i]] for k, x in BATCH.items()}) for i in range(3)]
    assert measured(*parts) == pytest.approx(measured((OUTPUTS, BATCH)), rel=1e-6)


def test_constant_series_do_not_count_in_mase():
    constant = BATCH | {"naive_error": np.tile([4.0, 0.0], (3, 1))}
    error = np.abs(OUTPUTS - BATCH["label"])[:2, :, 0] * 10
    assert measured((OUTPUTS, constant))["mase"] == pytest.approx(error.mean() / 4, rel=1e-6)
    unknown = BATCH | {"naive_error": np.tile([4.0, np.nan], (3, 1))}
    assert measured((OUTPUTS, unknown))["mase"] == pytest.approx(error.mean() / 4, rel=1e-6)


@pytest.mark.parametrize("name", ["mse", "mae", "huber"])
def test_losses_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    theirs = {
        "mse": torch.nn.MSELoss(),
        "mae": torch.nn.L1Loss(),
        "huber": torch.nn.HuberLoss(),
    }[name]
    losses, weights = Forecasting(point_loss=name).losses(jnp.asarray(OUTPUTS), BATCH)
    expected = theirs(torch.tensor(OUTPUTS[:2]), torch.tensor(BATCH["label"][:2]))
    assert float((losses * weights).sum() / weights.sum()) == pytest.approx(expected.item(), 1e-6)


def test_the_task_takes_its_fields():
    inputs, keywords = Forecasting().model_arguments(BATCH)
    assert inputs is BATCH["inputs"]
    assert keywords == {}


@pytest.mark.parametrize(
    ("outputs", "batch", "message"),
    [
        (OUTPUTS[:, :3], BATCH, r"forecasts \[S, C\] = \[3, 2\], but .* are \[4, 2\]"),
        (OUTPUTS, {k: x for k, x in BATCH.items() if k != "scale"}, "scale is missing; use"),
    ],
)
def test_other_outputs_and_batches_are_named(outputs, batch, message):
    with pytest.raises(UserError, match=message):
        Forecasting().metrics(outputs, batch)


def test_the_loss_is_checked():
    with pytest.raises(UserError, match="point_loss must be 'mse' or 'mae' or 'huber', got 'l1'"):
        Forecasting(point_loss="l1")
