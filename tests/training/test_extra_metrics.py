"""Metrics that are not averages of examples equal scikit-learn's, however a split is divided."""

import json
import math
import warnings
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.small_runs import small_config
from sklearn import metrics as sklearn_metrics

import flaxdl
from flaxdl.errors import UserError
from flaxdl.layers import Linear
from flaxdl.runs.setup import set_up
from flaxdl.training import (
    SGD,
    Classification,
    MultiLabelClassification,
    Regression,
    Selection,
    Steps,
)
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.placement import Placement, create_on, put_batch
from flaxdl.training.evaluation import Evaluator
from flaxdl.training.tasks.scores import ranking_score, score

CLASSES = ("a", "b", "c", "d/e", "never")
ALL = (
    *("macro_f1", "balanced_accuracy", "auroc", "average_precision"),
    *(f"{metric}/{name}" for metric in ("precision", "recall", "f1") for name in CLASSES),
)
EXAMPLES = 37  # no batch size or number of devices divides it


class Scores(nn.Module):
    """Logits of as many classes as the last class has a bias against it."""

    num_classes: int = len(CLASSES)

    @nn.compact
    def __call__(self, inputs, train=False):
        return Linear(self.num_classes, use_bias=False, name="fc")(inputs)


def make_split(num_classes, seed):
    """Small whole numbers, so that many logits are equal."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(-1, 2, (EXAMPLES, 3)).astype(np.float32)
    label = rng.integers(0, num_classes, EXAMPLES).astype(np.int32)
    return inputs, label


def batches(inputs, label, size):
    """Batches of one size, the last one padded with rows of weight 0."""
    for start in range(0, len(label), size):
        rows = np.minimum(np.arange(start, start + size), len(label) - 1)
        weight = (np.arange(start, start + size) < len(label)).astype(np.float32)
        yield {"inputs": inputs[rows], "label": label[rows], "weight": weight}


def measure(task, count, size, inputs, label, weight, classes):
    """Metrics of a linear model with these weights [K, 3] on `count` devices."""
    model = Scores(len(weight))
    steps = Steps(model=model, task=task, optimizer=SGD(learning_rate=0.1), total_steps=1)
    mesh = make_mesh(devices=jax.devices()[:count])
    first = next(batches(inputs, label, size))
    state = create_on(Placement(mesh), partial(steps.initial_state, first))
    placed = jax.device_put(weight.T, state.params["fc"]["kernel"].sharding)
    state = state.replace(params={"fc": {"kernel": placed}})
    placed_batches = (put_batch(batch, mesh) for batch in batches(inputs, label, size))
    return Evaluator(steps, mesh, classes).measure(state, placed_batches)


def evaluate(count, size, num_classes, names, classes):
    """Metrics on `count` devices, and the logits and labels they are those of."""
    inputs, label = make_split(num_classes - 1 if num_classes > 2 else 2, seed=num_classes)
    weight = np.random.default_rng(1).integers(-1, 2, (num_classes, 3)).astype(np.float32)
    task = Classification(extra_metrics=names)
    found = measure(task, count, size, inputs, label, weight, classes)
    return found, inputs @ weight.T, label


def expected_metrics(logits, label, classes):
    """The metrics of scikit-learn, averaged over the classes for which it defines them."""
    predicted, numbers = logits.argmax(-1), np.arange(len(classes))
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
        label, predicted, labels=numbers, zero_division=np.nan
    )
    probabilities = np.asarray(jax.nn.softmax(logits))
    present = [k for k in numbers if 0 < (label == k).sum() < len(label)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balanced = sklearn_metrics.balanced_accuracy_score(label, predicted)
    curves, areas = zip(
        *(
            (
                sklearn_metrics.roc_auc_score(label == k, probabilities[:, k]),
                sklearn_metrics.average_precision_score(label == k, probabilities[:, k]),
            )
            for k in present
        ),
        strict=True,
    )
    return {
        "macro_f1": sklearn_metrics.f1_score(label, predicted, average="macro"),
        "balanced_accuracy": balanced,
        "auroc": np.mean(curves),
        "average_precision": areas[1] if len(classes) == 2 else np.mean(areas),
        **{f"precision/{name}": precision[k] for k, name in enumerate(classes)},
        **{f"recall/{name}": recall[k] for k, name in enumerate(classes)},
        **{f"f1/{name}": f1[k] for k, name in enumerate(classes)},
    }


@pytest.mark.eight_devices
@pytest.mark.parametrize(("count", "size"), [(1, 10), (3, 12), (8, 16)])
def test_metrics_are_those_of_scikit_learn_on_any_number_of_devices(count, size):
    found, logits, label = evaluate(count, size, len(CLASSES), ALL, CLASSES)
    ordered = np.sort(logits, -1)
    assert (ordered[:, -1] == ordered[:, -2]).sum() > 3  # ties of the predicted class
    assert np.bincount(label, minlength=5)[4] == 0  # "never" does not occur
    assert math.isnan(found["recall/never"])
    expected = expected_metrics(logits, label, CLASSES)
    assert found.keys() == {"loss", "accuracy", *ALL}
    for name in ALL:
        assert found[name] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), name


@pytest.mark.eight_devices
@pytest.mark.parametrize(("count", "size"), [(1, 10), (3, 12), (8, 16)])
def test_several_labels_on_any_number_of_devices(count, size):
    inputs, _ = make_split(2, seed=0)
    rng = np.random.default_rng(2)
    weight = rng.integers(-1, 2, (4, 3)).astype(np.float32)
    label = (rng.random((EXAMPLES, 4)) < 0.4).astype(np.float32)
    label[:, 3] = 0  # absent
    label[::5, 1] = np.nan  # missing
    names, classes = ("macro_f1", "auroc", "average_precision", "recall/b"), CLASSES[:4]
    task = MultiLabelClassification(extra_metrics=names, thresholds=0.5)
    found = measure(task, count, size, inputs, label, weight, classes)
    logits, f1, curves, areas = inputs @ weight.T, [], [], []
    for k in range(4):
        known = ~np.isnan(label[:, k])
        actual, scores = label[known, k], logits[known, k]
        f1.append(sklearn_metrics.f1_score(actual, scores >= 0, zero_division=np.nan))
        if actual.any():
            curves.append(sklearn_metrics.roc_auc_score(actual, scores))
            areas.append(sklearn_metrics.average_precision_score(actual, scores))
    assert found["macro_f1"] == pytest.approx(np.nanmean(f1), abs=1e-12)
    assert found["auroc"] == pytest.approx(np.mean(curves), abs=1e-12)
    assert found["average_precision"] == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.eight_devices
@pytest.mark.parametrize(("count", "size"), [(1, 10), (3, 12), (8, 16)])
def test_numbers_on_any_number_of_devices(count, size):
    inputs, _ = make_split(2, seed=0)
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(2, 3)).astype(np.float32)
    mean, std = np.array([1e6, -3.0]), np.array([50.0, 0.5])
    label = ((inputs @ weight.T + rng.normal(size=(EXAMPLES, 2))) * std + mean).astype(np.float32)
    label[::7, 0] = np.nan
    task = Regression(mean=tuple(mean), std=tuple(std), targets=("a", "b"))
    found = measure(task, count, size, inputs, label, weight, ("a", "b"))
    predicted = (inputs @ weight.T).astype(np.float64) * std + mean
    for k, name in enumerate("ab"):
        rows = ~np.isnan(label[:, k])
        pair = label[rows, k].astype(np.float64), predicted[rows, k]
        expected = {
            "mae": sklearn_metrics.mean_absolute_error(*pair),
            "rmse": sklearn_metrics.root_mean_squared_error(*pair),
            "r2": sklearn_metrics.r2_score(*pair),
        }
        for metric, value in expected.items():
            assert found[f"{metric}/{name}"] == pytest.approx(value, rel=1e-5), metric


def test_two_classes_have_the_average_precision_of_the_second():
    names = ("auroc", "average_precision", "macro_f1")
    found, logits, label = evaluate(1, 8, 2, names, ("no", "yes"))
    expected = expected_metrics(logits, label, ("no", "yes"))
    assert found == pytest.approx(found | {name: expected[name] for name in names}, abs=1e-12)


def test_scores_of_hand_made_counts():
    counts = np.array([[3, 0, 0], [4, 0, 2], [5, 1, 0]])  # correct, predicted, actual
    classes = ("x", "y", "z")
    assert score("precision/x", counts, classes) == 3 / 4
    assert score("recall/x", counts, classes) == 3 / 5
    assert score("f1/x", counts, classes) == 6 / 9
    assert math.isnan(score("precision/y", counts, classes))  # never predicted
    assert math.isnan(score("recall/z", counts, classes))  # never occurs
    assert score("balanced_accuracy", counts, classes) == (3 / 5 + 0) / 2
    assert score("macro_f1", counts, classes) == pytest.approx(6 / 9 / 3)  # y and z have 0
    assert score("micro_f1", counts, classes) == 6 / 12
    assert math.isnan(score("macro_f1", np.zeros((3, 3), int), classes))


def test_a_class_without_negatives_has_an_average_precision_only():
    scores, actual = np.array([[0.1], [0.2]]), np.ones((2, 1), bool)
    assert math.isnan(ranking_score("auroc", scores, actual, actual))
    assert ranking_score("average_precision", scores, actual, actual) == 1
    assert math.isnan(ranking_score("average_precision", scores, ~actual, actual))


def test_scores_that_are_not_finite_have_no_ranking():
    scores = np.array([[0.1, 0.3], [0.2, np.nan], [0.3, 0.4]])
    actual = np.array([[0, 1], [1, 0], [0, 1]], bool)
    counted = np.ones_like(actual)
    for name in ("auroc", "average_precision"):
        assert math.isnan(ranking_score(name, scores, actual, counted))
        assert math.isnan(ranking_score(name, np.full((3, 2), np.inf), actual, counted))
    # What does not count may be NaN.
    assert ranking_score("auroc", scores, actual, ~np.isnan(scores)) == 0.5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("macro_f1", "extra_metrics must be a tuple of names, got 'macro_f1'"),
        ((3,), r"extra_metrics must be a tuple of names, got \(3,\)"),
        (("macro_f",), "extra_metrics must be names out of .*got 'macro_f'; did you mean"),
        (("auroc", "auroc"), "extra_metrics must be different, got auroc twice"),
        (("macro_f1/cat",), "must be names out of"),
        (("recall",), "recall/CLASS, f1/CLASS, got 'recall'"),
    ],
)
def test_wrong_names_are_refused(names, message):
    with pytest.raises(UserError, match=message):
        Classification(extra_metrics=names)


def test_a_class_that_the_data_lack_is_named():
    task = Classification(extra_metrics=("recall/cart",))
    message = "extra_metrics has 'recall/cart', but the classes of the data are cat, dog; did you"
    with pytest.raises(UserError, match=message):
        task.fit(np.array([0, 1]), ("cat", "dog"))
    with pytest.raises(UserError, match="the classes of the data have no names"):
        task.fit(np.array([0, 1]), None)


def test_a_run_selects_by_a_metric_of_a_class(tmp_path):
    names = ("macro_f1", "recall/2", "auroc")
    config = small_config(
        epochs=3.0,
        evaluate_every=1.0,
        task=Classification(extra_metrics=names),
        selection=Selection(metric="recall/2"),
    )
    result = flaxdl.train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["split"] == "validation"]
    assert all(set(names) <= line.keys() for line in validation)
    assert not any(set(names) & line.keys() for line in lines if line["split"] == "train")
    values = [-1 if line["recall/2"] is None else line["recall/2"] for line in validation]
    best = max(range(len(values)), key=lambda i: (values[i], i))
    (test,) = (line for line in lines if line["split"] == "test")
    assert test["step"] == validation[best]["step"]
    measured = flaxdl.evaluate(tmp_path, config=config)
    assert measured == pytest.approx({name: test[name] for name in measured}, rel=1e-6)
    assert result.metrics["auroc"] == pytest.approx(test["auroc"])


def test_selecting_by_a_metric_that_is_not_computed_is_refused(tmp_path):
    message = "selection.metric must be .*got 'macro_f1'; to compute it, add it to task.extra_met"
    with pytest.raises(UserError, match=message):
        flaxdl.train(small_config(selection=Selection(metric="macro_f1")), tmp_path)


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("recall/2", "to compute it, add it to task.extra_metrics"),
        ("recall/two", "set --selection.metric accuracy"),  # no such class
        ("top_5_accuracy", "did you mean 'accuracy'"),  # of more than ten classes only
    ],
)
def test_only_metrics_that_the_task_accepts_are_suggested(metric, hint):
    task, computed = Classification(), ["loss", "accuracy"]
    with pytest.raises(UserError, match=f"got '{metric}'; {hint}"):
        Selection(metric=metric).check(computed, task, ("0", "1", "2"))


@pytest.mark.parametrize("name", ["step", "accuracy"])
def test_names_of_evaluation_metrics_that_are_taken_are_refused(name):
    class Taken(Classification):
        def evaluation_names(self):
            return (name,)

    with pytest.raises(UserError, match=f"Taken.evaluation_names must .*{name}"):
        set_up(small_config(task=Taken()))


def test_evaluation_returns_the_metrics_that_the_task_promises(tmp_path):
    class Broken(Classification):
        def evaluation_metrics(self, totals, rows, classes):
            return {"macro_f": 0.5}

    message = r"Broken.evaluation_metrics must return .*lists \(macro_f1\), got macro_f$"
    with pytest.raises(UserError, match=message):
        flaxdl.train(small_config(task=Broken(extra_metrics=("macro_f1",))), tmp_path)
