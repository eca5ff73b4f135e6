"""Whole runs: train, stop anywhere, go on, evaluate, predict; and what bad input says."""

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import bright_quadrants, quadrant_source, small_config

import flaxdl
from flaxdl.data import Arrays
from flaxdl.models import SimpleCNN
from flaxdl.training import SGD, Diverged, Interrupted, Selection
from flaxdl.training.console import ConsoleWriter

WALL_CLOCK = {"examples_per_second"}


def metric_lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]


def assert_identical(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, flaxdl.train(small_config(), workdir)


def test_a_run_leaves_what_it_promises(uninterrupted):
    workdir, result = uninterrupted
    lines = metric_lines(workdir)
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 6, 9, 12, 15, 18]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [5, 10, 15, 18]
    assert lines[-1]["split"] == "test"
    assert result.metrics | {"split": "test"} == result.metrics
    assert sorted(p.name for p in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "events",
        "metrics.jsonl",
    ]
    assert json.loads((workdir / "config.json").read_text())["versions"]["jax"] == jax.__version__
    assert {int(p.name) for p in (workdir / "checkpoints").iterdir()} >= {15, 18}


def interrupt_at(monkeypatch, step, number):
    """Sends the process a signal when the loop starts the given step."""
    progress = ConsoleWriter.progress

    def with_signal(self, at):
        progress(self, at)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(ConsoleWriter, "progress", with_signal)


@pytest.mark.parametrize("step", [0, 2, 4, 5, 11, 17])
def test_interrupted_anywhere_it_ends_the_same(uninterrupted, tmp_path, monkeypatch, step):
    whole, result = uninterrupted
    number = signal.SIGTERM if step % 2 else signal.SIGINT
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(Interrupted, match=f"saved at step {step + 1}") as stopped:
            flaxdl.train(small_config(), tmp_path)
    assert stopped.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    resumed = flaxdl.train(small_config(), tmp_path)
    assert_identical(resumed.variables, result.variables)
    assert metric_lines(tmp_path) == metric_lines(whole)


def test_a_crash_without_saving_ends_the_same(uninterrupted, tmp_path, monkeypatch):
    whole, result = uninterrupted
    with monkeypatch.context() as patch:
        progress = ConsoleWriter.progress

        def crash(self, at):
            progress(self, at)
            if at == 13:
                raise RuntimeError("power cut")

        patch.setattr(ConsoleWriter, "progress", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            flaxdl.train(small_config(), tmp_path)
    assert metric_lines(tmp_path)[-1]["step"] == 12  # beyond the checkpoint of step 10
    resumed = flaxdl.train(small_config(), tmp_path)
    assert_identical(resumed.variables, result.variables)
    assert metric_lines(tmp_path) == metric_lines(whole)


def test_a_finished_run_says_so_and_stays_as_it_is(uninterrupted, capsys):
    workdir, result = uninterrupted
    before = (workdir / "metrics.jsonl").read_text()
    again = flaxdl.train(small_config(), workdir)
    assert "already finished" in capsys.readouterr().err
    assert (workdir / "metrics.jsonl").read_text() == before
    assert_identical(again.variables, result.variables)


def test_evaluation_counts_every_example_once(uninterrupted):
    workdir, result = uninterrupted
    images, labels = bright_quadrants(37, seed=1)
    transform = small_config().transform
    logits = SimpleCNN(num_classes=4).apply(result.variables, transform.normalize(images))
    by_hand = float(np.mean(np.argmax(logits, -1) == labels))
    assert result.metrics["accuracy"] == pytest.approx(by_hand, abs=1e-6)
    scored = flaxdl.evaluate(workdir, "test", config=small_config())
    assert scored["accuracy"] == pytest.approx(by_hand, abs=1e-6)


def test_predict_reads_files(uninterrupted, tmp_path):
    workdir, _ = uninterrupted
    images, _ = bright_quadrants(3, seed=1)
    files = []
    for number, image in enumerate(images):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image[..., 0]).save(files[-1])
    found = flaxdl.predict(workdir, files)
    assert [prediction.item for prediction in found] == files
    for prediction in found:
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
        assert set(prediction.probabilities) == {"0", "1", "2", "3"}


def test_early_stopping_ends_the_run_at_its_best_and_stays_ended(tmp_path, capsys):
    # A momentum this large ruins the model after it was good.
    config = small_config(
        optimizer=SGD(learning_rate=0.02, momentum=0.99),
        epochs=25,
        selection=Selection(metric="loss", patience=2),
    )
    result = flaxdl.train(config, tmp_path)
    validation = [line for line in metric_lines(tmp_path) if line["split"] == "validation"]
    best = min(validation, key=lambda line: (line["loss"], -line["step"]))
    assert validation.index(best) == len(validation) - 3
    assert validation[-1]["step"] < 100
    assert result.metrics["step"] == best["step"]
    assert result.metrics["split"] == "test"
    flaxdl.train(config, tmp_path)
    assert "already finished" in capsys.readouterr().err


def test_numbers_that_diverge_end_the_run(tmp_path):
    source = quadrant_source()
    arrays = {name: array.astype(np.float32) for name, array in source.arrays.items()}
    arrays = {k: v.astype(np.int32) if k.endswith("label") else v for k, v in arrays.items()}
    arrays["train_inputs"][:] = np.nan
    config = small_config(
        data=Arrays.from_memory(**arrays), max_bad_steps=3, transform=flaxdl.data.Transform()
    )
    with pytest.raises(Diverged, match="not finite for 3 steps in a row"):
        flaxdl.train(config, tmp_path)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bit_runs_resume_exactly(tmp_path, monkeypatch, precision):
    config = small_config(precision=precision, epochs=2)
    whole = flaxdl.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Interrupted):
            flaxdl.train(config, tmp_path / "stopped")
    resumed = flaxdl.train(config, tmp_path / "stopped")
    assert_identical(resumed.variables, whole.variables)


def test_a_workdir_of_another_config_is_refused_unless_told(uninterrupted):
    workdir, _ = uninterrupted
    other = small_config(epochs=5.0, optimizer=SGD(learning_rate=0.5))
    before = (workdir / "config.json").read_text()
    with pytest.raises(ValueError, match="another config") as error:
        flaxdl.train(other, workdir)
    assert "epochs: 4.5 → 5.0" in str(error.value)
    assert "flaxdl.training.optimizers.SGD" in str(error.value)
    assert (workdir / "config.json").read_text() == before


def test_accepted_changes_go_on_from_the_checkpoint(tmp_path):
    flaxdl.train(small_config(epochs=2.0), tmp_path)
    longer = flaxdl.train(small_config(epochs=3.0), tmp_path, accept_changes=True)
    assert longer.metrics["split"] == "test"
    assert [line["step"] for line in metric_lines(tmp_path) if line["split"] == "train"][-1] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 20}, "batch_size must be a multiple of the 8 devices"),
        ({"batch_size": 80}, "batch_size must be between 1 and the 72 training examples, got 80"),
        ({"model": SimpleCNN(num_classes=7)}, "4 classes.* 7 outputs"),
        ({"optimizer": SGD(no_decay=("*.biass",))}, "optimizer.no_decay: the pattern"),
        ({"selection": Selection(metric="f1")}, "selection.metric is 'f1'"),
    ],
)
def test_what_does_not_fit_is_named_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        flaxdl.train(small_config(**changes), tmp_path / "run")


def test_an_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir .*file/run cannot be written .*--workdir"):
        flaxdl.train(small_config(), tmp_path / "file" / "run")


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        flaxdl.predict(tmp_path, ["x.png"])


def test_a_missing_split_is_named(uninterrupted):
    workdir, _ = uninterrupted
    with pytest.raises(ValueError, match="no dev split"):
        flaxdl.evaluate(workdir, "dev", config=small_config())


def test_a_broken_image_is_named(uninterrupted, tmp_path):
    workdir, _ = uninterrupted
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        flaxdl.predict(workdir, [str(tmp_path / "broken.png")], config=small_config())


def test_no_file_is_left_outside_the_workdir(uninterrupted):
    workdir, _ = uninterrupted
    assert not list(Path(workdir).parent.glob("*.tmp"))
