"""Regression: losses and gradients as in PyTorch, metrics as in scikit-learn, one message each."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from flaxdl.data import ArrayDataset, Splits
from flaxdl.data.dataset import Subset
from flaxdl.errors import UserError
from flaxdl.runs.fitted_task import fit_task
from flaxdl.training import MultiLabelClassification, Regression, Selection
from flaxdl.training.metrics import MetricSums

NAN = math.nan
IDENTITY = {"mean": (0.0,), "std": (1.0,)}


def batch_of(label, weight=None):
    label = jnp.asarray(label)
    weight = np.ones(len(label), np.float32) if weight is None else np.asarray(weight, np.float32)
    return {"label": label, "weight": jnp.asarray(weight)}


def means(task, outputs, batch):
    return task.finish(MetricSums.of(task.metrics(outputs, batch)).means())


@pytest.mark.parametrize(
    ("task", "criterion"),
    [
        (Regression(**IDENTITY), ("MSELoss", {})),
        (Regression(point_loss="mae", **IDENTITY), ("L1Loss", {})),
        (Regression(point_loss="huber", **IDENTITY), ("HuberLoss", {})),
        (Regression(point_loss="huber", delta=0.3, **IDENTITY), ("HuberLoss", {"delta": 0.3})),
    ],
    ids=["mse", "mae", "huber", "huber_0.3"],
)
def test_losses_and_gradients_are_pytorchs(task, criterion):
    torch = pytest.importorskip("torch")
    name, options = criterion
    rng = np.random.default_rng(0)
    outputs, label = rng.normal(size=(2, 40, 3))
    task = dataclasses.replace(task, mean=(0.5, -2.0, 100.0), std=(1.5, 0.1, 20.0))
    theirs = torch.tensor(outputs, requires_grad=True)
    loss = getattr(torch.nn, name)(**options)(theirs, torch.tensor((label - task.mean) / task.std))
    loss.backward()
    with jax.enable_x64(True):
        batch = batch_of(jnp.asarray(label, jnp.float64))
        ours, gradient = jax.value_and_grad(task.loss)(jnp.asarray(outputs, jnp.float64), batch)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, loss.item(), rtol=1e-9)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-9, atol=1e-15)


def test_losses_of_low_precision_are_computed_in_float32():
    task = Regression(**IDENTITY)
    outputs = jnp.full((2, 1), 3.0, jnp.bfloat16)
    losses, _ = task.losses(outputs, batch_of(np.array([2.9, 3.0], np.float32)))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses[:, 0], [0.01, 0], rtol=1e-5)


def test_missing_entries_have_weight_0_and_no_gradient():
    task = Regression(mean=(10.0, 0.0), std=(2.0, 1.0))
    batch = batch_of([[12.0, NAN], [NAN, 3.0], [14.0, 1.0]], [1, 1, 0])
    outputs = jnp.array([[0.0, 7.0], [5.0, 1.0], [9.0, 9.0]])
    # Known entries of weight 1: errors of 0 - 1 and 1 - 3 standard deviations.
    loss, gradient = jax.value_and_grad(task.loss)(outputs, batch)
    assert loss == pytest.approx((1 + 4) / 2)
    np.testing.assert_array_equal(gradient, [[-1, 0], [0, -2], [0, 0]])
    found = means(task, outputs, batch)
    # In own units, these are errors of 2 and 2.
    assert found == pytest.approx({"loss": 2.5, "mae": 2, "rmse": 2})


def test_fit_computes_mean_and_deviation_of_the_known_entries():
    labels = np.array([[1.0, 5.0, NAN], [3.0, 5.0, 4.0], [NAN, 5.0, 8.0]], np.float32)
    task = Regression().fit(labels, ("a", "b", "c"))
    assert task == Regression(mean=(2, 5, 6), std=(1, 1, 2), targets=("a", "b", "c"))
    assert task.fit(None, ("a", "b", "c")) == task  # resumed
    assert Regression().fit(labels[:, 0], None) == Regression(mean=(2,), std=(1,))
    given = Regression(mean=(0.0,), std=(1.0,))
    assert given.fit(labels[:, 0], None) == given
    assert given.num_outputs(None) == 1
    assert task.num_outputs(task.targets) == 3
    assert task.target_names == ("a", "b", "c")
    assert given.target_names == ("target",)
    assert Regression(mean=(0, 0), std=(1, 1)).target_names == ("target_0", "target_1")


def test_statistics_are_float32_numbers():
    labels = np.random.default_rng(0).normal(1e6, 1, 1000).astype(np.float32)
    task = Regression().fit(labels, None)
    mean, std = task.mean[0], task.std[0]
    assert float(np.float32(mean)) == mean
    assert float(np.float32(std)) == std
    assert mean == pytest.approx(labels.mean(dtype=np.float64), abs=0.04)
    assert std == pytest.approx(labels.std(dtype=np.float64), rel=1e-6)


def measured(task, outputs, label, batch_size=64):
    """Metrics of a split, as evaluation computes them from its batches."""
    sums, rows = None, []
    for start in range(0, len(label), batch_size):
        here = slice(start, start + batch_size)
        batch = batch_of(label[here])
        more = MetricSums.of(task.metrics(jnp.asarray(outputs[here]), batch))
        sums = more if sums is None else sums + more
        rows.append(task.evaluation_rows(jnp.asarray(outputs[here]), batch))
    rows = {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
    return task.finish(sums.means()) | task.evaluation_metrics({}, rows, None)


def test_scores_by_hand():
    task = Regression(mean=(10.0,), std=(2.0,))
    label = np.array([8.0, 12.0, 16.0, NAN], np.float32)
    outputs = np.array([[0.0], [1.0], [1.0], [9.0]], np.float32)  # 10, 12 and 12 in own units
    expected = {
        "loss": (1 + 0 + 4) / 3,
        "mae": (2 + 0 + 4) / 3,
        "rmse": math.sqrt((4 + 0 + 16) / 3),
        "r2": 1 - (4 + 0 + 16) / (16 + 0 + 16),
    }
    assert measured(task, outputs, label) == pytest.approx(expected)
    assert task.evaluation_names() == ("r2",)


@pytest.mark.parametrize("offset", [0.0, 1e6, -3e7], ids=["0", "1e6", "-3e7"])
def test_scores_are_scikit_learns(offset):
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 50.0, 0.01 if offset == 0 else 1000.0])
    label = (offset + rng.normal(size=(1000, 3)) * scale).astype(np.float32)
    if offset:  # as precise as float32 numbers of this size
        label = np.rint(label * 4) / 4
    task = Regression().fit(label, ("a", "b", "c"))
    standardized = (label.astype(np.float64) - task.mean) / task.std
    outputs = (standardized + rng.normal(0, 0.4, (1000, 3))).astype(np.float32)
    found = measured(task, outputs, label)
    truth, predicted = label.astype(np.float64), task.in_own_units(outputs)
    each = {
        "mae": mean_absolute_error(truth, predicted, multioutput="raw_values"),
        "rmse": np.sqrt(mean_squared_error(truth, predicted, multioutput="raw_values")),
        "r2": r2_score(truth, predicted, multioutput="raw_values"),
    }
    expected = {
        "mae": mean_absolute_error(truth, predicted),
        "rmse": math.sqrt(mean_squared_error(truth, predicted)),
        "r2": r2_score(truth, predicted),
        **{f"{k}/{name}": x for k, of in each.items() for name, x in zip("abc", of, strict=True)},
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert {*found} - {"loss"} == {*task.evaluation_names(), "mae", "rmse"}


def test_undefined_scores_are_nan_and_left_out_of_the_mean():
    task = Regression(mean=(0, 0, 0, 0), std=(1, 1, 1, 1), targets=("a", "same", "one", "none"))
    label = np.array([[1, 7, 2, NAN], [3, 7, NAN, NAN], [5, 7, NAN, NAN]], np.float32)
    outputs = np.array([[1, 6, 3, 0], [3, 7, 0, 0], [3, 7, 0, 0]], np.float32)
    found = measured(task, outputs, label)
    assert found["r2/a"] == pytest.approx(1 - 4 / 8)
    assert found["r2"] == found["r2/a"]
    for name in ("r2/same", "r2/one", "r2/none", "mae/none", "rmse/none"):
        assert math.isnan(found[name]), name
    assert found["mae/one"] == 1
    assert math.isnan(measured(Regression(**IDENTITY), outputs[:1, :1], label[:1, :1])["r2"])


def test_squares_of_huge_and_tiny_targets_do_not_overflow():
    for scale in (1e30, 1e-30):
        task = Regression(mean=(0.0,), std=(scale,))
        found = measured(task, np.array([[1.0], [3.0]], np.float32), np.float32([0, scale]))
        assert found["rmse"] == pytest.approx(scale * math.sqrt(5 / 2), rel=1e-5)
        assert found["mae"] == pytest.approx(scale * 3 / 2, rel=1e-5)


def test_directions_and_selection():
    task = Regression(mean=(0, 0), std=(1, 1), targets=("a", "b"))
    assert {x: task.direction(x) for x in ("loss", "mae", "rmse", "r2", "mae/a", "r2/b")} == {
        "loss": "lower", "mae": "lower", "rmse": "lower", "r2": "higher",
        "mae/a": "lower", "r2/b": "higher",
    }  # fmt: skip
    names = ("loss", "mae", "rmse", *task.evaluation_names())
    Selection(metric="rmse/b").check(names, task)
    with pytest.raises(UserError, match=r"got 'accuracy'; set --selection.metric mae"):
        Selection().check(names, task)
    lines = [{"step": 1, "r2/b": 0.2}, {"step": 2, "r2/b": 0.7}, {"step": 3, "r2/b": None}]
    assert Selection(metric="r2/b").best_step(lines, task) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"point_loss": "l1"}, "point_loss must be"),
        ({"delta": 0.5}, "delta applies to point_loss 'huber', got delta 0.5 and point_loss 'mse'"),
        ({"point_loss": "huber", "delta": 0}, "delta must be positive and finite, got 0"),
        ({"point_loss": "huber", "delta": NAN}, "delta must be positive and finite, got nan"),
        ({"mean": 3.0, "std": 1.0}, "mean must be a tuple of finite numbers.* got 3.0"),
        ({"mean": (NAN,), "std": (1,)}, r"mean must be a tuple of finite numbers.* got \(nan,\)"),
        ({"mean": (), "std": ()}, "mean must be a tuple of finite numbers"),
        ({"mean": (1.0,)}, "mean and std must be given together"),
        ({"mean": (1.0,), "std": (1.0, 2.0)}, "one number per target, got 1 and 2"),
        ({"mean": (1.0,), "std": (0.0,)}, "std must be positive"),
        ({"targets": "age"}, "targets must be a tuple of different names, got 'age'"),
        ({"targets": ("a", "a")}, "targets must be a tuple of different names"),
    ],
)
def test_invalid_fields(fields, message):
    with pytest.raises(UserError, match=message):
        Regression(**fields)


def test_labels_that_do_not_fit():
    label = np.zeros((3, 2), np.float32)
    with pytest.raises(UserError, match="needs labels that are known without reading"):
        Regression().fit(None, None)
    with pytest.raises(UserError, match="there are none of b"):
        Regression().fit(np.array([[1, NAN]]), ("a", "b"))
    with pytest.raises(UserError, match="must be the names in the data, a, b, got b, a"):
        Regression(targets=("b", "a")).fit(label, ("a", "b"))
    with pytest.raises(UserError, match="one entry for each of the 2 targets.* got 1 means"):
        Regression(**IDENTITY).fit(label, None)
    with pytest.raises(UserError, match="one entry for each of the 2 targets.* and 1 names"):
        Regression(targets=("a",)).fit(label, None)


def test_outputs_that_do_not_fit():
    task = Regression(mean=(0, 0), std=(1, 1))
    with pytest.raises(UserError, match="have 2 targets, but the model has 3 outputs; set --model"):
        task.check(jax.ShapeDtypeStruct((1, 3), jnp.float32), None)
    with pytest.raises(UserError, match="the model's outputs"):
        task.check(jax.ShapeDtypeStruct((1,), jnp.float32), None)
    with pytest.raises(UserError, match=r"label must have shape \[B, 2\].* got \[1\]"):
        task.losses(jnp.zeros((1, 2)), batch_of([1.0]))
    with pytest.raises(UserError, match="call fit on it first"):
        Regression().losses(jnp.zeros((1, 2)), batch_of([1.0]))


def test_examples_cannot_be_mixed():
    batch = batch_of([[1.0]]) | {"label_2": jnp.ones((1, 1)), "mix": jnp.ones(1)}
    with pytest.raises(
        UserError, match="mixup and cutmix need classes, and Regression has numbers"
    ):
        Regression(**IDENTITY).losses(jnp.zeros((1, 1)), batch)


def test_examples_of_weight_0_do_not_count_in_the_statistics():
    label = np.array([1, 3, 1e6, 5], np.float32)
    arrays = {"inputs": np.zeros((4, 2)), "label": label, "weight": np.array([1, 2, 0, 0.5])}
    for dataset in (ArrayDataset(arrays), Subset(ArrayDataset(arrays), np.arange(1, 4))):
        known = dataset.labels()[dataset.weights() > 0]
        task = fit_task(Regression(), Splits(dataset, None, None, None))
        assert task.mean == (known.mean(),)
        assert task.std == pytest.approx((known.std(),), rel=1e-6)
    labels = np.array([[1], [0], [0], [1]], np.float32)
    splits = Splits(ArrayDataset(arrays | {"label": labels}), None, None, ("a",))
    fitted = fit_task(MultiLabelClassification(pos_weight="balanced"), splits)
    assert fitted.pos_weight == (("a", 0.5),)  # one negative, two positives
