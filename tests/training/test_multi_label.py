"""Multi-label classification: PyTorch's loss, scikit-learn's metrics, thresholds by F1."""

import json
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from flaxdl.data.batch_augmentation import check_mixable, mixup
from flaxdl.errors import UserError
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.training import AdamW, MultiLabelClassification, Selection, Steps
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.placement import Placement, create_on, put_batch
from flaxdl.training.evaluation import Evaluator
from flaxdl.training.tasks.losses import mixed, weighted
from flaxdl.training.tasks.thresholds import best_f1_threshold

NAMES = ("ant", "bee", "cat", "dog")
POS_WEIGHT = (0.2, 1.0, 3.5, 40.0)
PAIRS = tuple(zip(NAMES, POS_WEIGHT, strict=True))
NAN = float("nan")


def labels_of(count, seed, classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (count, classes)).astype(np.float64)
    labels[rng.random(labels.shape) < 0.2] = NAN
    return labels


def batch_of(count=12, is_mixed=False):
    batch = {
        "label": jnp.asarray(labels_of(count, 0)),
        "weight": jnp.asarray([*np.ones(count - 1), 0.0]),
    }
    if is_mixed:
        batch["label_2"] = jnp.asarray(labels_of(count, 1))
        batch["mix"] = jnp.asarray(np.random.default_rng(2).uniform(0.5, 1, count))
    return batch


def mean_loss(task, logits, batch):
    losses, weights = mixed(task.losses, logits, batch)
    return jnp.sum(weighted(losses, weights)) / jnp.sum(weights)


def pytorch_loss(torch, logits, target, weight, pos_weight):
    """The mean of PyTorch's loss over entries, given their weights."""
    losses = torch.nn.BCEWithLogitsLoss(reduction="none", pos_weight=pos_weight)(logits, target)
    return (losses * weight).sum() / weight.sum()


@pytest.mark.parametrize("pos_weight", [None, PAIRS])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_loss_and_gradient_are_those_of_pytorch(pos_weight, is_mixed):
    """A missing entry has weight 0; a mixed example has the mixed weight of its parts."""
    torch = pytest.importorskip("torch")
    task = MultiLabelClassification(pos_weight=pos_weight)
    logits = np.random.default_rng(1).normal(0, 3, (12, 4))
    with jax.enable_x64(True):
        batch = batch_of(is_mixed=is_mixed)
        value, gradient = jax.value_and_grad(lambda x: mean_loss(task, x, batch))(
            jnp.asarray(logits)
        )
    known, target = ~np.isnan(batch["label"]), np.nan_to_num(batch["label"])
    weight = np.asarray(batch["weight"])[:, None] * known
    if is_mixed:
        mix = np.asarray(batch["mix"])[:, None]
        known_2, target_2 = ~np.isnan(batch["label_2"]), np.nan_to_num(batch["label_2"])
        share, share_2 = mix * known, (1 - mix) * known_2
        weight = np.asarray(batch["weight"])[:, None] * (share + share_2)
        total = np.where(share + share_2 == 0, 1, share + share_2)
        target = (share * target + share_2 * target_2) / total  # soft labels
    theirs = torch.tensor(logits, requires_grad=True)
    weights = None if pos_weight is None else torch.tensor(POS_WEIGHT, dtype=torch.float64)
    expected = pytorch_loss(torch, theirs, torch.tensor(target), torch.tensor(weight), weights)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-12)


def test_loss_of_two_entries_by_hand():
    """Of three entries one is missing: (ln 2 * 3 + ln(1 + e)) / 2, with weight 3 for the 1."""
    task = MultiLabelClassification(pos_weight=(("a", 3.0), ("b", 5.0), ("c", 7.0)))
    batch = {"label": jnp.array([[1.0, NAN, 0.0]]), "weight": jnp.ones(1)}
    logits = jnp.array([[0.0, 4.0, 1.0]])
    expected = (3 * math.log(2) + math.log(1 + math.e)) / 2
    assert float(task.loss(logits, batch)) == pytest.approx(expected, rel=1e-6)
    assert task.losses(logits.astype(jnp.bfloat16), batch)[0].dtype == jnp.float32
    losses, weights = task.metrics(logits, batch)["loss"]  # without pos_weight
    mean = float(jnp.sum(losses * weights) / 2)
    assert mean == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2, rel=1e-6)


def test_huge_logits_have_finite_losses_and_gradients():
    batch = {"label": jnp.array([[1.0, 0.0, NAN]]), "weight": jnp.ones(1)}
    logits = jnp.array([[-1e4, 1e4, 1e4]])
    value, gradient = jax.value_and_grad(lambda x: MultiLabelClassification().loss(x, batch))(
        logits
    )
    assert float(value) == 1e4
    np.testing.assert_array_equal(gradient, [[-0.5, 0.5, 0.0]])


def test_mixup_mixes_labels_of_several_classes():
    label = jnp.array([[1.0, 0.0, NAN], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    batch = {
        "inputs": jnp.arange(3.0).reshape(3, 1, 1, 1),
        "label": label,
        "weight": jnp.array([1.0, 1.0, 0.0]),
    }
    check_mixable(batch)
    found = mixup(batch, jax.random.key(0), alpha=1.0)
    mix = np.asarray(found["mix"])
    assert 0.5 <= mix[1] < 1
    np.testing.assert_array_equal(mix[[0, 2]], 1)  # the partner, or the example, has weight 0
    first, second = np.asarray(found["label"][1]), np.asarray(found["label_2"][1])
    larger = first[0] == 0  # the example itself is the larger part
    np.testing.assert_array_equal(first, label[1 if larger else 0])
    np.testing.assert_array_equal(second, label[0 if larger else 1])
    assert float(found["inputs"][1, 0, 0, 0]) == pytest.approx(mix[1] if larger else 1 - mix[1])
    with pytest.raises(UserError, match=r"or several, as floating-point numbers \[3, K\]; got int"):
        check_mixable({**batch, "label": jnp.zeros((3, 2), jnp.int32)})


class Logits(nn.Module):
    """A model that returns its inputs."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return inputs + self.param("zero", nn.initializers.zeros, ())


def evaluated(task, logits, labels, weight=None):
    """Metrics and tuned task of an evaluation in batches of 16, the last of which is padded."""
    arrays = {
        "inputs": logits.astype(np.float32),
        "label": labels.astype(np.float32),
        "weight": np.ones(len(logits), np.float32) if weight is None else weight,
    }
    padding = -len(logits) % 16
    arrays = {
        name: np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])
        for name, x in arrays.items()
    }
    batches = [
        {name: x[start : start + 16] for name, x in arrays.items()}
        for start in range(0, len(arrays["weight"]), 16)
    ]
    steps = Steps(model=Logits(), task=task, optimizer=AdamW(), total_steps=1)
    mesh = make_mesh()
    state = create_on(Placement(mesh), partial(steps.initial_state, batches[0]))
    placed = [put_batch(batch, mesh) for batch in batches]
    evaluator = Evaluator(steps, mesh, NAMES[: labels.shape[1]])
    return evaluator.measure(state, placed), evaluator.tuned_task(state, placed)


METRICS = (
    *("macro_f1", "micro_f1", "exact_match", "auroc", "average_precision"),
    *(f"{metric}/{name}" for metric in ("precision", "recall", "f1") for name in NAMES),
)


def test_metrics_are_those_of_scikit_learn():
    """With missing entries, ties in the ranking, and a class without positive examples."""
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = labels_of(75, 3)
    labels[:, 3] = np.where(np.isnan(labels[:, 3]), NAN, 0)  # an absent class
    logits = np.round(rng.normal(0, 1, (75, 4)) + np.nan_to_num(labels), 1)  # with ties
    weight = np.ones(75, np.float32)
    weight[[3, 50]] = 0  # unreadable examples
    thresholds = (("ant", 0.3), ("bee", 0.5), ("cat", 0.7), ("dog", 0.9))
    task = MultiLabelClassification(thresholds=thresholds, extra_metrics=METRICS)
    found, _ = evaluated(task, logits, labels, weight)

    labels, logits = labels[weight > 0], logits[weight > 0]
    probabilities, known = 1 / (1 + np.exp(-logits)), ~np.isnan(labels)
    predicted = probabilities >= np.array([value for _, value in thresholds])
    actual = np.nan_to_num(labels) > 0.5
    columns = [(actual[k, i], predicted[k, i], logits[k, i]) for i, k in enumerate(known.T)]
    expected = {}
    nothing = {"zero_division": np.nan}
    for name, (is_class, is_predicted, _) in zip(NAMES, columns, strict=True):
        expected[f"precision/{name}"] = sklearn.precision_score(is_class, is_predicted, **nothing)
        expected[f"recall/{name}"] = sklearn.recall_score(is_class, is_predicted, **nothing)
        expected[f"f1/{name}"] = sklearn.f1_score(is_class, is_predicted, **nothing)
    expected["macro_f1"] = np.nanmean([expected[f"f1/{name}"] for name in NAMES])
    expected["micro_f1"] = sklearn.f1_score(actual[known], predicted[known])
    expected["exact_match"] = np.mean(
        [
            np.array_equal(a[k], p[k])
            for a, p, k in zip(actual, predicted, known, strict=True)
            if k.any()
        ]
    )
    expected["accuracy"] = sklearn.accuracy_score(actual[known], predicted[known])
    expected["loss"] = sklearn.log_loss(actual[known], probabilities[known])
    expected["auroc"] = np.mean([sklearn.roc_auc_score(a, s) for a, _, s in columns[:3]])
    expected["average_precision"] = np.mean(
        [sklearn.average_precision_score(a, s) for a, _, s in columns[:3]]
    )
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_metrics_of_complete_labels_are_those_of_scikit_learns_indicators():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 2, (40, 3)), rng.normal(0, 2, (40, 3))
    names = ("macro_f1", "micro_f1", "exact_match", "auroc", "average_precision")
    found, _ = evaluated(MultiLabelClassification(extra_metrics=names), logits, labels)
    predicted = logits >= 0
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert found["micro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="micro"))
    assert found["exact_match"] == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert found["auroc"] == pytest.approx(sklearn.roc_auc_score(labels, logits))
    expected = sklearn.average_precision_score(labels, logits)
    assert found["average_precision"] == pytest.approx(expected)


def test_a_metric_without_examples_is_nan():
    found, _ = evaluated(
        MultiLabelClassification(extra_metrics=("macro_f1", "auroc", "recall/ant")),
        np.full((5, 2), -1.0),
        np.zeros((5, 2)),
    )
    assert found["accuracy"] == 1
    assert all(math.isnan(found[name]) for name in ("macro_f1", "auroc", "recall/ant"))


@pytest.mark.parametrize(
    ("probabilities", "actual", "expected"),
    [
        # F1 of the four thresholds from below: 2*2/(4+2), 2*2/(3+2), 2*1/(2+2), 2*1/(1+2)
        ([0.1, 0.25, 0.5, 0.75], [0, 1, 0, 1], (0.1 + 0.25) / 2),
        ([0.1, 0.2, 0.6, 0.8], [0, 0, 1, 1], 0.4),
        ([0.1, 0.2, 0.6, 0.8], [0, 0, 0, 0], 0.5),
        ([0.25, 0.75], [1, 1], 0.125),
        ([0.25, 0.25, 0.75], [1, 0, 1], 0.125),  # 2*2/(3+2) beats 2*1/(1+2)
        ([0.3, 0.4, 0.45, 0.7], [1, 0, 0, 1], 0.575),  # 2*2/(4+2) equals 2*1/(1+2)
        ([0.0, 0.0], [1, 1], float(np.finfo(np.float32).tiny)),
        ([], [], 0.5),
    ],
)
def test_the_threshold_with_the_best_f1_by_hand(probabilities, actual, expected):
    found = best_f1_threshold(np.array(probabilities, np.float32), np.array(actual, bool))
    assert found == pytest.approx(expected, rel=1e-6)
    assert np.float32(found) == found  # stored without rounding


def test_without_probabilities_the_threshold_is_one_half():
    assert best_f1_threshold(np.array([0.1, NAN, 0.3], np.float32), np.array([0, 1, 1])) == 0.5


def test_exact_match_is_an_average_of_examples():
    task = MultiLabelClassification(extra_metrics=("exact_match", "micro_f1"))
    assert task.evaluation_names() == ("micro_f1",)


def test_no_threshold_has_a_better_f1():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    actual = rng.random(60) < 0.3
    probabilities = np.round(rng.beta(2, 3, 60) * 0.7 + 0.3 * actual, 2).astype(np.float32)
    found = sklearn.f1_score(actual, probabilities >= best_f1_threshold(probabilities, actual))
    best = max(sklearn.f1_score(actual, probabilities >= one) for one in np.unique(probabilities))
    assert found == best > 0.5


def test_thresholds_are_tuned_by_class_on_known_entries():
    logits = np.array([[-1.0, 2.0], [0.0, 1.0], [1.0, 3.0], [5.0, 9.0]])
    labels = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, NAN]])
    task = MultiLabelClassification()
    assert task.needs_tuning
    _, tuned = evaluated(task, logits, labels, np.array([1, 1, 1, 0], np.float32))
    assert not tuned.needs_tuning
    (ant, low), (bee, high) = tuned.thresholds
    assert (ant, bee) == ("ant", "bee")
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert low == pytest.approx((sigmoid(-1) + sigmoid(0)) / 2, rel=1e-6)
    assert high == pytest.approx((sigmoid(2) + sigmoid(3)) / 2, rel=1e-6)
    before, _ = evaluated(task, logits[:3], labels[:3])
    after, _ = evaluated(tuned, logits[:3], labels[:3])
    assert (before["accuracy"], after["accuracy"]) == (pytest.approx(4 / 6), 1)
    assert before["loss"] == after["loss"]


@pytest.mark.eight_devices
def test_thresholds_and_metrics_do_not_depend_on_the_devices():
    rng = np.random.default_rng(4)
    labels, logits = labels_of(75, 5), rng.normal(0, 1, (75, 4)).astype(np.float32)
    metrics, tuned = evaluated(MultiLabelClassification(extra_metrics=METRICS), logits, labels)
    assert jax.device_count() == 8
    probabilities, known = np.asarray(jax.nn.sigmoid(logits)), ~np.isnan(labels)
    for number, (name, threshold) in enumerate(tuned.thresholds):
        rows = known[:, number]
        expected = best_f1_threshold(probabilities[rows, number], labels[rows, number] > 0.5)
        assert (name, threshold) == (NAMES[number], pytest.approx(expected, rel=1e-5))
    is_correct = ((logits >= 0) == (labels > 0.5))[known]
    assert metrics["accuracy"] == pytest.approx(is_correct.mean())


def test_balanced_weights_are_negatives_over_positives():
    labels = np.array([[1, 0], [1, 1], [0, NAN], [NAN, 0], [0, 0], [0, 0]], np.float32)
    fitted = MultiLabelClassification(pos_weight="balanced").fit(labels, ("a", "b"))
    assert fitted.pos_weight == (("a", 1.5), ("b", 4.0))
    assert fitted.fit(labels, ("a", "b")) == fitted


def test_pairs_are_sorted_by_class():
    task = MultiLabelClassification(
        pos_weight=PAIRS[::-1], thresholds=(("dog", 0.4), ("cat", 0.3), ("bee", 0.2), ("ant", 0.1))
    )
    fitted = task.fit(None, NAMES)
    assert fitted.pos_weight == PAIRS
    assert fitted.thresholds == (("ant", 0.1), ("bee", 0.2), ("cat", 0.3), ("dog", 0.4))
    plain = MultiLabelClassification()
    assert plain.fit(None, NAMES) is plain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_weight": "equal"}, "pos_weight must be 'balanced', or a tuple of pairs .* 'equal'"),
        ({"pos_weight": (("ant", 0.0),)}, "pos_weight must be positive and finite, got 0.0 for"),
        ({"pos_weight": (("ant", 1.0), ("ant", 2.0))}, "pos_weight must name each class once"),
        (
            {"thresholds": "f1"},
            "thresholds must be 'best_f1', a number, or a tuple .* got 'f1'",
        ),
        ({"thresholds": None}, "thresholds must be 'best_f1', a number, or .* got None"),
        ({"thresholds": 1.0}, "thresholds must be between 0 and 1, got 1.0"),
        ({"thresholds": NAN}, "thresholds must be between 0 and 1, got nan"),
        ({"thresholds": (("ant", 0.0),)}, "thresholds must be between 0 and 1, got 0.0 for 'ant'"),
        (
            {"extra_metrics": ("balanced_accuracy",)},
            "out of macro_f1, micro_f1, exact_match, ",
        ),
        ({"extra_metrics": ("macro_f1", "macro_f1")}, "must be different, got macro_f1 twice"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        MultiLabelClassification(**fields)


LABELS = np.array([[1, 0, 1, 0], [0, 0, 1, 1]], np.float32)


@pytest.mark.parametrize(
    ("fields", "labels", "classes", "message"),
    [
        ({"pos_weight": PAIRS[:3]}, LABELS, NAMES, "pos_weight must name all 4 classes, lacks dog"),
        ({"pos_weight": "balanced"}, LABELS, NAMES, "positive .* but there are none of bee; give"),
        ({"pos_weight": "balanced"}, LABELS[:, [0, 2]], ("a", "c"), "negative .* none of c; give"),
        ({"pos_weight": "balanced"}, None, NAMES, "known without reading every example"),
        ({"thresholds": (("cow", 0.5),)}, LABELS, NAMES, "thresholds names cow, but the classes"),
        ({"extra_metrics": ("f1/cow",)}, LABELS, NAMES, "'f1/cow', but the classes of the data"),
        ({}, LABELS, None, "needs names of the columns of the labels"),
    ],
)
def test_fields_that_do_not_fit_the_data_are_refused(fields, labels, classes, message):
    with pytest.raises(UserError, match=message):
        MultiLabelClassification(**fields).fit(labels, classes)


def test_outputs_and_labels_that_do_not_fit_are_refused():
    task, batch = MultiLabelClassification(), batch_of()
    with pytest.raises(UserError, match="data have 4 classes, but the model has 3 outputs; set"):
        task.losses(jnp.zeros((12, 3)), batch)
    with pytest.raises(UserError, match=r"label must have shape \[B=12, K\], got \[12\]"):
        task.losses(jnp.zeros((12, 3)), {**batch, "label": jnp.zeros(12)})
    with pytest.raises(UserError, match="data have 4 classes, but the model has 3 outputs; set"):
        task.check(jnp.zeros((12, 3)), 4)
    with pytest.raises(UserError, match="pos_weight must be 4 pairs .* 'balanced'; call fit"):
        MultiLabelClassification(pos_weight="balanced").losses(jnp.zeros((12, 4)), batch)
    with pytest.raises(UserError, match="thresholds must be 4 pairs"):
        MultiLabelClassification(thresholds=(("a", 0.5),)).metrics(jnp.zeros((12, 4)), batch)


@pytest.mark.parametrize(
    ("flags", "field", "expected"),
    [
        (["--pos-weight", "balanced"], "pos_weight", "balanced"),
        (["--pos-weight", "cat", "1", "dog", "2.5"], "pos_weight", (("cat", 1.0), ("dog", 2.5))),
        (["--thresholds", "0.4"], "thresholds", 0.4),
        (["--thresholds", "best_f1"], "thresholds", "best_f1"),
        (["--thresholds", "cat", "0.3", "dog", "0.5"], "thresholds", (("cat", 0.3), ("dog", 0.5))),
    ],
)
def test_fields_are_set_by_flags_and_stored_as_json(flags, field, expected):
    task = tyro.cli(MultiLabelClassification, args=flags, default=MultiLabelClassification())
    assert getattr(task, field) == expected
    assert from_json(json.loads(json.dumps(to_json(task)))) == task
    hash(task)


def test_a_checkpoint_can_be_selected_by_the_metrics_of_a_class():
    task = MultiLabelClassification(extra_metrics=("recall/cat", "exact_match"))
    for metric in ("recall/cat", "exact_match"):
        lines = [{"step": step, "split": "validation", metric: step / 4} for step in (1, 2)]
        assert Selection(metric=metric).best_step(lines, task) == 2
