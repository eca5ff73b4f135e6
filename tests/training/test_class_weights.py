"""Class weights: losses and gradients of PyTorch, scikit-learn's balanced weights, exact resume."""

import json
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from helpers.small_runs import bright_quadrants, interrupt_at, small_config, train

import flaxdl
from flaxdl.data import Arrays, Images
from flaxdl.errors import UserError
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.restored import read_plan
from flaxdl.runs.setup import set_up
from flaxdl.runs.workdir import Workdir
from flaxdl.training import Classification, Interrupted
from flaxdl.training.tasks import classification
from flaxdl.training.tasks.losses import mixed, weighted

NAMES = ("ant", "bee", "cat", "dog", "eel")
WEIGHTS = (0.2, 1.0, 3.5, 0.01, 40.0)
PAIRS = tuple(zip(NAMES, WEIGHTS, strict=True))
LABELS = np.repeat(np.arange(5, dtype=np.int32), [40, 20, 5, 1, 3])


def batch_of(count=12, mix=False):
    rng = np.random.default_rng(0)
    batch = {
        "label": jnp.asarray(rng.integers(0, 5, count), jnp.int32),
        "weight": jnp.asarray([*np.ones(count - 1), 0.0]),
    }
    if mix:
        batch["label_2"] = jnp.asarray(rng.integers(0, 5, count), jnp.int32)
        batch["mix"] = jnp.asarray(rng.uniform(0.5, 1, count))
    return batch


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_loss_and_gradient_are_those_of_pytorch(smoothing, is_mixed):
    """The mean is over the sum of weights for classes, and over examples for probabilities."""
    torch = pytest.importorskip("torch")
    task = Classification(label_smoothing=smoothing, class_weights=PAIRS)
    with jax.enable_x64(True):
        batch = batch_of(mix=is_mixed)
        logits = np.random.default_rng(1).normal(0, 3, (12, 5))

        def loss(logits):
            losses, weights = mixed(task.losses, logits, batch)
            return jnp.sum(weighted(losses, weights)) / jnp.sum(weights)

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    real = slice(0, 11)  # the last example is padding
    targets = torch.tensor(np.asarray(batch["label"])).long()
    if is_mixed:
        mix = np.asarray(batch["mix"])[:, None]
        one_hot = np.eye(5)
        targets = mix * one_hot[batch["label"]] + (1 - mix) * one_hot[batch["label_2"]]
        targets = torch.tensor(targets)
    theirs = torch.tensor(logits, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(
        weight=torch.tensor(WEIGHTS, dtype=torch.float64), label_smoothing=smoothing
    )
    expected = criterion(theirs[real], targets[real])
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-12)


def test_metrics_are_unweighted():
    logits = np.random.default_rng(1).normal(0, 3, (12, 5))
    batch = batch_of()
    found = Classification(class_weights=PAIRS, label_smoothing=0.1).metrics(logits, batch)
    expected = Classification().metrics(logits, batch)
    for name in ("loss", "accuracy"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_balanced_weights_are_those_of_scikit_learn():
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    fitted = Classification(class_weights="balanced").fit(LABELS, NAMES)
    expected = class_weight.compute_class_weight("balanced", classes=np.arange(5), y=LABELS)
    assert [name for name, _ in fitted.class_weights] == list(NAMES)
    np.testing.assert_allclose([w for _, w in fitted.class_weights], expected, rtol=1e-15)
    np.testing.assert_allclose(np.array(expected)[LABELS].mean(), 1)  # the scale of the loss stays


def test_weights_by_name_are_sorted_by_class():
    assert Classification(class_weights=PAIRS[::-1]).fit(None, NAMES).class_weights == PAIRS
    plain = Classification()
    assert plain.fit(None, None) is plain


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("balance", "must be 'balanced', or a tuple of pairs .* got 'balance'"),
        ({"ant": 1.0}, "must be 'balanced', or a tuple of pairs"),
        ((("ant", 1.0, 2.0),), "must be 'balanced', or a tuple of pairs"),
        ((("ant", "much"),), "must be 'balanced', or a tuple of pairs"),
        ((("ant", 0.0), ("bee", 1.0)), "must be positive and finite, got 0.0 for 'ant'"),
        ((("ant", -1.0), ("bee", float("nan"))), "got -1.0 for 'ant', nan for 'bee'"),
        ((("ant", float("inf")),), "must be positive and finite, got inf"),
        ((("ant", 1.0), ("ant", 2.0)), "must name each class once, got 'ant' more than once"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        Classification(class_weights=weights)


@pytest.mark.parametrize(
    ("weights", "labels", "classes", "message"),
    [
        (PAIRS[:3], LABELS, NAMES, "must name all 5 classes, lacks dog, eel"),
        ((*PAIRS, ("fly", 1.0)), LABELS, NAMES, "names fly, but the classes .* are ant, bee"),
        ((("bees", 1.0), *PAIRS), LABELS, NAMES, "did you mean 'bee'"),
        ("balanced", LABELS[:60], NAMES, "each class, but there are none of cat, dog, eel"),
        ("balanced", None, NAMES, "known without reading every example"),
        ("balanced", LABELS, None, "need classes as labels"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(weights, labels, classes, message):
    with pytest.raises(UserError, match=message):
        Classification(class_weights=weights).fit(labels, classes)


def test_a_task_that_was_not_fitted_says_so():
    with pytest.raises(UserError, match="5 pairs .* got 'balanced'; call fit"):
        Classification(class_weights="balanced").losses(jnp.zeros((12, 5)), batch_of())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--class-weights", "balanced"], "balanced"),
        (["--class-weights", "None"], None),
        (["--class-weights", "cat", "1", "dog", "2.5"], (("cat", 1.0), ("dog", 2.5))),
    ],
)
def test_weights_are_set_by_flags_and_stored_as_json(flags, expected):
    task = tyro.cli(Classification, args=flags, default=Classification())
    assert task.class_weights == expected
    assert from_json(json.loads(json.dumps(to_json(task)))) == task
    hash(task)


def imbalanced(**changes):
    inputs, label = bright_quadrants(80, 0)
    keep = (label != 2) | (np.cumsum(label == 2) <= 4)
    test_inputs, test_label = bright_quadrants(37, 1)
    source = Arrays.from_memory(
        train_inputs=inputs[keep],
        train_label=label[keep],
        test_inputs=test_inputs,
        test_label=test_label,
    )
    return small_config(data=source, epochs=2.0, evaluate_every=1.0, **changes)


@pytest.fixture(scope="module")
def config():
    return imbalanced(
        task=Classification(class_weights="balanced", label_smoothing=0.1),
        transform=Images(crop_padding=1, mixup_alpha=0.3),
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, config):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    train(config, folder)
    return folder


def test_the_weights_are_stored_with_the_run(workdir, config):
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["task"]["class_weights"] == "balanced"
    stored = record["data"]["task"]["class_weights"]
    assert [name for name, _ in stored] == ["0", "1", "2", "3"]
    plan = read_plan(workdir, config)  # without the data
    assert to_json(plan.config.task)["class_weights"] == stored
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    (test,) = (line for line in lines if line["split"] == "test")
    assert flaxdl.evaluate(workdir, config=config)["loss"] == pytest.approx(test["loss"], rel=1e-6)


def test_an_interrupted_run_resumes_with_the_same_weights(workdir, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config, tmp_path)
    # The stored weights are used, not those of the data at the time of resuming.
    again = lambda *_: pytest.fail("computed again")  # noqa: E731
    monkeypatch.setattr(classification, "balanced_weights", again)
    resumed = train(config, tmp_path)
    expected = flaxdl.restore(workdir, config)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, expected.variables)


def test_a_changed_task_is_fitted_again(workdir, config):
    pairs = tuple((str(number), 1.0 + number) for number in (3, 2, 1, 0))
    other = replace(config, task=Classification(class_weights=pairs))
    assert Workdir(workdir).fitted_task(config) is not None
    assert Workdir(workdir).fitted_task(other) is None
    assert set_up(other).config.task.class_weights == pairs[::-1]


def test_stored_weights_follow_the_classes_of_the_data(config):
    fitted = set_up(config).config.task
    assert set_up(config, fitted_task=fitted).config.task == fitted
    pairs = fitted.class_weights
    moved = replace(fitted, class_weights=pairs[::-1])
    assert set_up(config, fitted_task=moved).config.task == fitted
    fewer = replace(fitted, class_weights=pairs[:3])
    with pytest.raises(UserError, match="must name all 4 classes, lacks 3"):
        set_up(config, fitted_task=fewer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([1], "data.task must be an object"),
        ({"class_weights": [["0", -1.0]]}, "data.task: class_weights must be positive"),
        ({"weights": 3}, "data.task: .*weights"),
    ],
)
def test_a_damaged_record_is_one_message(workdir, config, tmp_path, fields, message):
    record = json.loads((workdir / "config.json").read_text())
    record["data"]["task"] = fields
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        read_plan(tmp_path, config)
