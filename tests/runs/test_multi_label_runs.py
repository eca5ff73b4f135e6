"""Runs with several labels per example: thresholds, resuming, predictions, export and figures."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_runs import interrupt_at, train
from PIL import Image

import flaxdl
from flaxdl import Config
from flaxdl.data import Arrays, Images
from flaxdl.errors import UserError
from flaxdl.models import SimpleCNN
from flaxdl.report import predictions
from flaxdl.report.write import write_report
from flaxdl.runs.setup import set_up
from flaxdl.runs.workdir import Workdir
from flaxdl.training import AdamW, Classification, Interrupted, MultiLabelClassification, Selection
from flaxdl.training.loop import Loop
from flaxdl.training.steps import Steps

NAMES = ("left", "right", "dark")


def bright_halves(count, seed):
    """Images whose halves are bright or not, independently; a few labels are missing."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, 8, 8, 1), dtype=np.uint8)
    labels = (rng.random((count, 3)) < [0.5, 0.3, 0.0]).astype(np.float32)
    images[:, :, :4] += (100 * labels[:, 0, None, None, None]).astype(np.uint8)
    images[:, :, 4:] += (100 * labels[:, 1, None, None, None]).astype(np.uint8)
    labels[:, 2] = labels[:, :2].sum(1) == 0
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return images, labels


def halves_source(seed=0):
    train_inputs, train_label = bright_halves(96, seed)
    test_inputs, test_label = bright_halves(37, 1)
    return Arrays.from_memory(
        train_inputs=train_inputs,
        train_label=train_label,
        test_inputs=test_inputs,
        test_label=test_label,
        classes=np.array(NAMES),
        validation_fraction=0.25,
    )


def config_of(**changes):
    settings = {
        "model": SimpleCNN(num_classes=None),
        "data": halves_source(),
        "transform": Images(),
        "task": MultiLabelClassification(extra_metrics=("macro_f1", "exact_match", "auroc")),
        "optimizer": AdamW(learning_rate=3e-3),
        "batch_size": 16,
        "epochs": 4,
        "selection": Selection(metric="macro_f1"),
    }
    return Config(**(settings | changes))


@pytest.fixture(scope="module")
def config():
    return config_of()


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi_label") / "run"
    train(config, folder)
    return folder


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_with_thresholds_chosen_by_validation(workdir, config):
    run = flaxdl.restore(workdir, config)
    assert run.model.num_classes == 3
    record = json.loads((workdir / "tuned_task.json").read_text())
    assert record["step"] == int(run.state.step)
    thresholds = dict(record["task"]["thresholds"])
    assert tuple(thresholds) == NAMES
    assert run.config.task.thresholds == tuple(thresholds.items())
    assert set(thresholds.values()) != {0.5}

    test = lines_of(workdir)[-1]
    assert test["split"] == "test"
    assert test["macro_f1"] > 0.8
    assert test["auroc"] > 0.9
    found = flaxdl.evaluate(workdir, "test", config=config)
    for name, value in found.items():
        assert test[name] == pytest.approx(value, rel=1e-5), name

    # In training, thresholds are 0.5; with those that were chosen, F1 on validation is no worse.
    best = max(
        (line for line in lines_of(workdir) if line["split"] == "validation"),
        key=lambda line: (line["macro_f1"], line["step"]),
    )
    tuned = flaxdl.evaluate(workdir, "validation", config=config)
    assert tuned["macro_f1"] >= best["macro_f1"]
    assert tuned["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_predictions_are_the_labels_at_or_above_their_thresholds(workdir, config):
    run = flaxdl.restore(workdir, config)
    images, _ = bright_halves(8, 5)
    logits = run.model.apply(run.variables, config.transform.normalize(images))
    expected = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(workdir.parent / f"{number}.png")
    items = [str(workdir.parent / f"{number}.png") for number in range(8)]
    found = flaxdl.predict(workdir, items, config=config)
    thresholds = dict(run.config.task.thresholds)
    for one, item, row in zip(found, items, expected, strict=True):
        assert isinstance(one, flaxdl.MultiLabelPrediction)
        assert one.item == item
        assert one.probabilities == pytest.approx(dict(zip(NAMES, row, strict=True)), abs=1e-5)
        assert list(one.probabilities.values()) == sorted(one.probabilities.values(), reverse=True)
        above = [name for name in one.probabilities if one.probabilities[name] >= thresholds[name]]
        assert list(one.labels) == above
    assert len({one.labels for one in found}) > 1


def test_an_interrupted_run_has_the_same_thresholds(workdir, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config, tmp_path)
    assert not (tmp_path / "tuned_task.json").exists()
    train(config, tmp_path)
    assert_same_run(workdir, tmp_path)


def test_an_interruption_before_the_test_keeps_the_thresholds(
    workdir, config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise Interrupted(signal.SIGTERM, "SIGTERM: stopped")

        patch.setattr(Loop, "test", interrupted)
        with pytest.raises(Interrupted):
            train(config, tmp_path)
    assert_same_run(workdir, tmp_path, splits=("train", "validation"))
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "tuned_task", lambda *_: pytest.fail("tuned again"))
        train(config, tmp_path)
    assert_same_run(workdir, tmp_path)


def copy_of(workdir, tmp_path):
    return Path(shutil.copytree(workdir, tmp_path / "copy"))


def test_thresholds_of_other_data_do_not_survive_an_interruption(
    workdir, config, tmp_path, monkeypatch
):
    folder, other = copy_of(workdir, tmp_path), replace(config, data=halves_source(seed=2))
    with monkeypatch.context() as patch:

        def interrupted(*_):
            raise Interrupted(signal.SIGTERM, "SIGTERM: stopped")

        patch.setattr(Loop, "tuned_task", interrupted)
        with pytest.raises(Interrupted):
            train(other, folder, accept_changes=True)
    assert not (folder / "tuned_task.json").exists()
    train(other, folder)
    ours, theirs = (json.loads((one / "tuned_task.json").read_text()) for one in (folder, workdir))
    assert ours["step"] == theirs["step"]
    assert ours["task"] != theirs["task"]


def test_a_finished_run_is_tested_again_with_another_task(workdir, config, tmp_path):
    folder = copy_of(workdir, tmp_path)
    metrics = (*config.task.extra_metrics, "recall/left")
    task = MultiLabelClassification(thresholds=0.95, extra_metrics=metrics)
    other = replace(config, task=task)
    train(other, folder, accept_changes=True)
    assert not (folder / "tuned_task.json").exists()
    *before, test = lines_of(folder)
    assert before == lines_of(workdir)[:-1]
    assert "recall/left" in test
    found = flaxdl.evaluate(folder, config=other)
    assert found == pytest.approx({name: test[name] for name in found}, rel=1e-5)
    train(other, folder)
    assert lines_of(folder)[-1] == test


def test_a_report_has_predictions_with_the_thresholds_of_the_run(workdir, config, tmp_path):
    folder = copy_of(workdir, tmp_path)
    (folder / "tuned_task.json").rename(tmp_path / "tuned_task.json")
    write_report([folder], config=config)  # as while the run is still training
    first = predictions.load(folder / "predictions.npz")
    np.testing.assert_array_equal(first.thresholds, [0.5, 0.5, 0.5])
    (tmp_path / "tuned_task.json").rename(folder / "tuned_task.json")
    write_report([folder], config=config)
    second = predictions.load(folder / "predictions.npz")
    tuned = flaxdl.restore(folder, config).config.task.thresholds
    np.testing.assert_allclose(second.thresholds, [value for _, value in tuned], rtol=1e-6)
    np.testing.assert_array_equal(first.probability, second.probability)


def count_evaluations(monkeypatch):
    """Returns a list to which each trace of the evaluation step is added."""
    traces, evaluate = [], Steps.evaluate

    def counted(*arguments):
        traces.append(arguments)
        return evaluate(*arguments)

    monkeypatch.setattr(Steps, "evaluate", counted)
    return traces


def test_validation_and_test_share_a_compiled_evaluation_without_tuning(tmp_path, monkeypatch):
    traces = count_evaluations(monkeypatch)
    task = MultiLabelClassification(thresholds=0.5)
    config = config_of(task=task, epochs=1, selection=Selection(metric="accuracy"))
    train(config, tmp_path)
    assert [line["split"] for line in lines_of(tmp_path)][-2:] == ["validation", "test"]
    assert len(traces) == 1


def assert_same_run(first, second, splits=("train", "validation", "test")):
    one, other = ((folder / "tuned_task.json").read_text() for folder in (first, second))
    assert one == other
    ours, theirs = (
        [
            {name: value for name, value in line.items() if name != "examples_per_second"}
            for line in lines_of(folder)
            if line["split"] in splits
        ]
        for folder in (first, second)
    )
    assert ours == theirs


def test_thresholds_belong_to_a_checkpoint(workdir, config, tmp_path):
    """Those of another checkpoint, or an unreadable file, are not used."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in workdir.iterdir():
        if path.name != "tuned_task.json":
            (folder / path.name).symlink_to(path)
    assert flaxdl.restore(folder, config).config.task.thresholds == "best_f1"
    record = json.loads((workdir / "tuned_task.json").read_text())
    (folder / "tuned_task.json").write_text(json.dumps(record | {"step": 1}))
    assert flaxdl.restore(folder, config).config.task.thresholds == "best_f1"
    (folder / "tuned_task.json").write_text("{")
    with pytest.raises(UserError, match=r"tuned_task.json cannot be read: .*; delete it"):
        flaxdl.restore(folder, config)
    (folder / "tuned_task.json").write_text(json.dumps(record | {"task": {"thresholds": 7}}))
    with pytest.raises(UserError, match=r"tuned_task.json is inconsistent: thresholds must be"):
        flaxdl.restore(folder, config)


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        (0.3, 0.3),
        (
            (("dark", 0.2), ("left", 0.3), ("right", 0.4)),
            (("left", 0.3), ("right", 0.4), ("dark", 0.2)),
        ),
    ],
)
def test_fixed_thresholds_are_not_tuned(thresholds, expected, tmp_path):
    task = MultiLabelClassification(thresholds=thresholds)
    config = config_of(task=task, epochs=1, selection=Selection(metric="accuracy"))
    assert train(config, tmp_path).run.config.task.thresholds == expected
    assert not (tmp_path / "tuned_task.json").exists()


def test_a_run_without_validation_keeps_thresholds_of_one_half(tmp_path):
    config = config_of(
        data=replace(halves_source(), validation_fraction=0.0),
        task=MultiLabelClassification(pos_weight="balanced"),
        epochs=1,
        selection=Selection(),
    )
    result = train(config, tmp_path)
    assert not (tmp_path / "tuned_task.json").exists()
    assert result.run.config.task.thresholds == "best_f1"
    weights = Workdir(tmp_path).data()["task"]["pos_weight"]
    label = bright_halves(96, 0)[1]
    expected = np.sum(label == 0, 0) / np.sum(label == 1, 0)
    assert [name for name, _ in weights] == list(NAMES)
    np.testing.assert_allclose([weight for _, weight in weights], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": Classification()}, "train_label must be .*; use the task MultiLabel"),
        ({"model": SimpleCNN(num_classes=5)}, "data have 3 classes, but the model has 5 outputs"),
        ({"balanced_sampling": True}, "balanced_sampling needs one integer class number"),
        (
            {
                "data": Arrays.from_memory(
                    train_inputs=np.zeros((20, 8, 8, 1), np.uint8), train_label=np.arange(20) % 2
                )
            },
            "train_label must be 0, 1 or NaN .*single classes need the task Classification",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(changes, message):
    settings = {"selection": Selection()} | changes
    with pytest.raises(UserError, match=message):
        set_up(config_of(**settings))


def test_mixup_trains_on_several_labels(tmp_path):
    config = config_of(transform=Images(mixup_alpha=0.4, cutmix_alpha=1.0), epochs=2)
    metrics = train(config, tmp_path).metrics
    assert metrics["loss"] < 0.69


def test_saliency_explains_the_most_probable_or_a_given_class(workdir, config, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(bright_halves(1, 7)[0][0, ..., 0]).save(path)
    (found,) = flaxdl.predict(workdir, [str(path)], config=config)
    figure = flaxdl.visualize(workdir, str(path), "saliency", config=config)
    shown = figure.get_suptitle() or figure.axes[0].get_title()
    most = next(iter(found.probabilities))
    labels = ", ".join(f"“{name}” ({found.probabilities[name]:.1%})" for name in found.labels)
    assert shown == f"Saliency for class “{most}”, predicted {labels or 'no class'}"
    figure = flaxdl.visualize(workdir, str(path), "grad-cam", class_name="dark", config=config)
    shown = figure.get_suptitle() or figure.axes[0].get_title()
    assert shown.startswith("Grad-CAM for class “dark”, predicted ")
    with pytest.raises(UserError, match="there is no class 'bright'; classes are left, right"):
        flaxdl.visualize(workdir, str(path), "saliency", class_name="bright", config=config)
