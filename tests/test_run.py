"""Whole runs: train, stop anywhere, go on, evaluate, predict; and what bad input says."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.sampling import sampled
from helpers.small_runs import bright_quadrants, interrupt_at, quadrant_source, small_config, train
from PIL import Image

import flaxdl
from flaxdl.analysis.trial import dry_run
from flaxdl.config import Init
from flaxdl.data import Arrays
from flaxdl.errors import SaveError
from flaxdl.models import SimpleCNN, TransformerClassifier
from flaxdl.report.write import ReportWriter
from flaxdl.runs.setup import _check_heads, set_up
from flaxdl.runs.workdir import Workdir
from flaxdl.training import SGD, AdamW, Cosine, Diverged, Interrupted, Selection
from flaxdl.training.loop import Loop
from flaxdl.training.writers.console import ConsoleWriter
from flaxdl.training.writers.metrics_file import MetricsFile

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


@pytest.mark.quick
def test_a_run_leaves_what_it_promises(uninterrupted):
    workdir, result = uninterrupted
    lines = metric_lines(workdir)
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 6, 9, 12, 15, 18]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [5, 10, 15, 18]
    assert lines[-1]["split"] == "test"
    assert result.metrics | {"split": "test"} == result.metrics
    assert sorted(p.name for p in workdir.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.json",
        "events",
        "metrics.jsonl",
        "predictions.npz",
        "report.html",
        "times.json",
    ]
    assert json.loads((workdir / "config.json").read_text())["versions"]["jax"] == jax.__version__
    assert {int(p.name) for p in (workdir / "checkpoints").iterdir()} >= {15, 18}


@pytest.mark.parametrize("step", sampled([0, 2, 4, 5, 11, 17], (0, 5, 11).__contains__))
def test_interrupted_anywhere_it_ends_the_same(uninterrupted, tmp_path, monkeypatch, step):
    whole, result = uninterrupted
    number = signal.SIGTERM if step % 2 else signal.SIGINT
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(Interrupted, match=f"saved at step {step}") as stopped:
            train(small_config(), tmp_path)
    assert stopped.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    resumed = train(small_config(), tmp_path)
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
            train(small_config(), tmp_path)
    assert metric_lines(tmp_path)[-1]["step"] == 12  # beyond the checkpoint of step 10
    resumed = train(small_config(), tmp_path)
    assert_identical(resumed.variables, result.variables)
    assert metric_lines(tmp_path) == metric_lines(whole)


def test_a_finished_run_says_so_and_stays_as_it_is(uninterrupted, capsys):
    workdir, result = uninterrupted
    before = (workdir / "metrics.jsonl").read_text()
    again = train(small_config(), workdir)
    assert "already finished" in capsys.readouterr().err
    assert (workdir / "metrics.jsonl").read_text() == before
    assert_identical(again.variables, result.variables)


@pytest.fixture
def finished(uninterrupted, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(uninterrupted[0], tmp_path / "run")


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on_before_it(
    uninterrupted, finished, caplog
):
    whole, result = uninterrupted
    flip(finished / "checkpoints" / "18" / "_METADATA")
    again = train(small_config(), finished)
    assert "step 18: _METADATA changed); resuming from step 15" in caplog.text
    assert_identical(again.variables, result.variables)
    assert metric_lines(finished) == metric_lines(whole)
    assert (finished / "checkpoints" / "damaged" / "18").is_dir()


def test_without_a_sound_checkpoint_nothing_is_overwritten(finished):
    for checkpoint in (finished / "checkpoints").iterdir():
        (checkpoint / "SHA256SUMS").unlink()
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged \(step"):
        train(small_config(), finished)
    with pytest.raises(ValueError, match="is damaged: its SHA256SUMS is missing"):
        flaxdl.evaluate(finished, config=small_config())
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_where_the_best_checkpoint_is_damaged_the_next_best_is_used(finished, caplog):
    lines = {line["step"]: line for line in metric_lines(finished) if line["split"] == "validation"}
    steps = [int(path.name) for path in (finished / "checkpoints").iterdir()]
    goodness = [(lines[step]["accuracy"], step) for step in steps]
    best, next_best = (step for _, step in sorted(goodness, reverse=True)[:2])
    flip(finished / "checkpoints" / f"{best}" / "manifest.ocdbt")
    found = flaxdl.evaluate(finished, "validation", config=small_config())
    assert f"step {best} in" in caplog.text
    assert found["loss"] == pytest.approx(lines[next_best]["loss"], abs=1e-6)


def test_two_runs_in_one_workdir_are_refused_and_readers_are_not(finished):
    with Workdir(finished).locked():
        with pytest.raises(ValueError, match="another run is training in .*run; wait"):
            train(small_config(), finished)
        flaxdl.evaluate(finished, config=small_config())
    assert train(small_config(), finished).metrics["split"] == "test"


def test_a_mistake_leaves_no_folder_behind(tmp_path):
    config = small_config(init=Init(weights="nowhere.safetensors"))
    with pytest.raises(ValueError, match="nowhere"):
        train(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_a_run_writes_is_writable_by_everyone(tmp_path):
    mask = os.umask(0)
    try:
        train(small_config(epochs=1, evaluate_every=1), tmp_path / "run")
        assert os.umask(0) == 0
    finally:
        os.umask(mask)
    written = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    assert len(written) > 15
    assert [path for path in written if path.stat().st_mode & 0o002] == []


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


def test_a_model_learns_a_single_batch_by_heart_and_resumes_in_it(tmp_path, monkeypatch, capsys):
    labels = np.random.default_rng(0).permutation(np.arange(80, dtype=np.int32) % 4)
    arrays = quadrant_source().arrays | {"train_label": labels}  # nothing but memory helps
    config = small_config(
        model=SimpleCNN(num_classes=4, dropout=0.0), data=Arrays.from_memory(**arrays), epochs=20
    )
    by_heart = replace(config, overfit_batches=1)
    whole = flaxdl.train(by_heart, tmp_path / "one")
    lines = metric_lines(tmp_path / "one")
    assert {line["split"] for line in lines} == {"train"}  # no validation, no test
    assert [line["accuracy"] for line in lines].index(1) == len(lines) - 1
    assert lines[-1]["step"] == whole.metrics["step"] < 80  # of all that it might have taken
    assert not (tmp_path / "one" / "report.html").exists()
    learned = f"overfit the batch: training accuracy 1 and loss {lines[-1]['loss']:.4g}"
    assert learned in capsys.readouterr().err
    flaxdl.train(by_heart, tmp_path / "one")
    output = capsys.readouterr().err
    assert learned in output
    assert "already finished" in output
    assert metric_lines(tmp_path / "one") == lines
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(by_heart, tmp_path / "stopped")
    assert_identical(train(by_heart, tmp_path / "stopped").variables, whole.variables)


class Scaled(nn.Module):
    """A linear model whose logits are multiplied."""

    factor: float
    num_classes: int = 4

    @nn.compact
    def __call__(self, images, train=False):
        return self.factor * nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def test_a_dry_run_tells_whether_the_first_step_is_finite():
    with pytest.raises(Diverged, match="dry run: loss or gradients of the first batch are not"):
        dry_run(set_up(small_config(model=Scaled(float("inf")))))
    # Here the first scale of the loss is too large, and found by skipping steps.
    metrics = dry_run(set_up(small_config(model=Scaled(100.0), precision="float16")))
    assert set(metrics) == {"train", "validation"}
    assert np.isfinite(metrics["train"]["loss"])


def test_more_steps_than_can_be_counted_are_refused():
    with pytest.raises(
        ValueError, match=r"epochs 1e\+10 amount to 4e\+10 steps; at most 2\*\*31 - 1"
    ):
        set_up(small_config(epochs=1e10))


def test_early_stopping_ends_the_run_at_its_best_and_stays_ended(tmp_path, capsys):
    # A momentum this large ruins the model after it was good.
    config = small_config(
        optimizer=SGD(learning_rate=0.02, momentum=0.99),
        epochs=25,
        selection=Selection(metric="loss", patience=2),
    )
    result = train(config, tmp_path)
    validation = [line for line in metric_lines(tmp_path) if line["split"] == "validation"]
    best = min(validation, key=lambda line: (line["loss"], -line["step"]))
    assert validation.index(best) == len(validation) - 3
    assert validation[-1]["step"] < 100
    assert result.metrics["step"] == best["step"]
    assert result.metrics["split"] == "test"
    end = f"at step {validation[-1]['step']} of 100: validation loss has not improved in the last 2"
    assert f"finished early, {end} evaluations" in capsys.readouterr().err.replace("\n", " ")
    train(config, tmp_path)
    assert "already finished" in capsys.readouterr().err


class NanInTraining(flaxdl.data.Transform):
    """Makes the inputs NaN, but not where a run is set up."""

    def draw(self, rng, size):
        return {"factor": np.full((size, 1, 1, 1), np.nan, np.float32)}

    def prepare(self, batch, draws):
        return batch | {"inputs": batch["inputs"] * draws.get("factor", np.float32(1 / 255))}


def test_numbers_that_diverge_end_the_run(tmp_path):
    config = small_config(max_bad_steps=3, transform=NanInTraining())
    message = (
        "were not finite for 3 consecutive steps, from step 1 to 3. First non-finite value at "
        "step 3: the field of the batch inputs. Last training losses: not finite. "
        "There is no checkpoint yet; a smaller --optimizer.learning-rate"
    )
    with pytest.raises(Diverged, match=message):
        train(config, tmp_path)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_sixteen_bit_runs_resume_exactly(tmp_path, monkeypatch, precision):
    config = small_config(precision=precision, epochs=2)
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "stopped")
    resumed = train(config, tmp_path / "stopped")
    assert_identical(resumed.variables, whole.variables)


def test_a_workdir_of_another_config_is_refused_unless_told(uninterrupted):
    workdir, _ = uninterrupted
    other = small_config(epochs=5.0, optimizer=SGD(learning_rate=0.5))
    before = (workdir / "config.json").read_text()
    with pytest.raises(ValueError, match="another config") as error:
        train(other, workdir)
    assert "epochs: 4.5 → 5.0" in str(error.value)
    assert "flaxdl.training.SGD" in str(error.value)
    assert (workdir / "config.json").read_text() == before


def test_accepted_changes_go_on_from_the_checkpoint(tmp_path):
    train(small_config(epochs=2.0), tmp_path)
    longer = train(small_config(epochs=3.0), tmp_path, accept_changes=True)
    assert longer.metrics["split"] == "test"
    assert [line["step"] for line in metric_lines(tmp_path) if line["split"] == "train"][-1] == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"batch_size": 20},
            "batch_size must be a multiple of the 8 devices",
            marks=pytest.mark.eight_devices,
        ),
        (
            {"batch_size": 80},
            "batch_size must be between 1 and 72, the number of training examples, got 80",
        ),
        ({"model": SimpleCNN(num_classes=7)}, "4 classes.* 7 outputs"),
        ({"optimizer": SGD(no_decay=("*.biass",))}, "optimizer.no_decay: the pattern"),
        ({"selection": Selection(metric="acuracy")}, "got 'acuracy'; did you mean 'accuracy'"),
        (
            {"optimizer": AdamW(learning_rate=1e-3, schedule=Cosine(warmup_steps=18))},
            "warmup_steps must be less than the 18 steps of the run, got 18",
        ),
    ],
)
def test_what_does_not_fit_is_named_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(small_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_short_run_has_twenty_lines_or_one_a_step(tmp_path):
    for epochs, steps in ((1.0, [1, 2, 3, 4]), (12.0, list(range(2, 49, 2)))):
        workdir = tmp_path / str(epochs)
        train(small_config(epochs=epochs, evaluate_every=12.0, log_every=None), workdir)
        lines = [line["step"] for line in metric_lines(workdir) if line["split"] == "train"]
        assert lines == steps


def test_an_unwritable_workdir_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir .*file/run cannot be written .*--workdir"):
        train(small_config(), tmp_path / "file" / "run")


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no run"):
        flaxdl.predict(tmp_path, ["x.png"])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MiB, with room for the run's checkpoints and one more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield disk
    subprocess.run(["umount", "--recursive", disk], check=True)


def fill(workdir):
    ballast = workdir.parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def empty(workdir):
    (workdir.parent / "ballast").unlink()


def make_read_only(workdir):
    subprocess.run(["mount", "--bind", workdir, workdir], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", workdir], check=True)


def make_writable(workdir):
    subprocess.run(["umount", workdir], check=True)


def take_away(workdir):
    workdir.rename(workdir.parent / "elsewhere")


def bring_back(workdir):
    (workdir.parent / "elsewhere").rename(workdir)


TROUBLES = {
    "No space left on device": (fill, empty),
    "Read-only file system": (make_read_only, make_writable),
    "No such file or directory": (take_away, bring_back),
}


def trouble_between(monkeypatch, workdir, reason, first, last):
    """Makes trouble when the loop starts a step, and ends it when it starts another one."""
    steps = dict(zip((first, last), TROUBLES[reason], strict=True))
    progress = ConsoleWriter.progress

    def with_trouble(self, at):
        progress(self, at)
        if at == 9:
            deadline = time.monotonic() + 60
            while not (workdir / "checkpoints" / "5" / "SHA256SUMS").exists():
                assert time.monotonic() < deadline
        steps.get(at, lambda workdir: None)(workdir)

    monkeypatch.setattr(ConsoleWriter, "progress", with_trouble)


@pytest.mark.parametrize("reason", TROUBLES)
def test_what_cannot_be_written_for_a_while_is_reported_and_the_run_goes_on(
    uninterrupted, small_disk, monkeypatch, caplog, reason
):
    whole, result = uninterrupted
    workdir = small_disk / "run"
    before = threading.enumerate()
    with monkeypatch.context() as patch:
        trouble_between(patch, workdir, reason, 9, 16)
        ours = train(small_config(), workdir)
    # Nothing that waits for what cannot be written keeps the process from ending.
    for thread in set(threading.enumerate()) - set(before):
        if not thread.daemon:
            thread.join(60)
            assert not thread.is_alive()
    told = [message for message in caplog.messages if reason in message]
    for step in (10, 15):
        start = f"the checkpoint of step {step} cannot be written: {reason} (step of the newest"
        assert any(message.startswith(start) for message in told)
    assert_identical(ours.variables, result.variables)
    assert metric_lines(workdir) == metric_lines(whole)
    assert "Traceback" not in caplog.text


def test_what_cannot_be_written_at_all_ends_the_run_with_a_message(
    uninterrupted, small_disk, monkeypatch
):
    whole, result = uninterrupted
    workdir = small_disk / "run"
    with monkeypatch.context() as patch:
        trouble_between(patch, workdir, "Read-only file system", 9, 99)
        with pytest.raises(SaveError, match="step 18 cannot be written: Read-only file system"):
            train(small_config(), workdir)
    make_writable(workdir)
    assert_identical(train(small_config(), workdir).variables, result.variables)
    assert metric_lines(workdir) == metric_lines(whole)


@pytest.mark.parametrize("split", ["dev", "classes", "map"])
def test_a_missing_split_is_named(uninterrupted, split):
    workdir, _ = uninterrupted
    with pytest.raises(ValueError, match=f"split must be train, validation or test, got '{split}'"):
        flaxdl.evaluate(workdir, split, config=small_config())


def test_a_broken_image_is_named(uninterrupted, tmp_path):
    workdir, _ = uninterrupted
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        flaxdl.predict(workdir, [str(tmp_path / "broken.png")], config=small_config())


def test_no_file_is_left_outside_the_workdir(uninterrupted):
    workdir, _ = uninterrupted
    assert not list(Path(workdir).parent.glob("*.tmp"))


@pytest.mark.parametrize(
    ("platform", "precision", "tensor", "fits"),
    [
        ("gpu", "bfloat16", 8, False),
        ("gpu", "bfloat16", 4, True),
        ("gpu", "float32", 8, True),
        ("cpu", "bfloat16", 8, True),
    ],
)
def test_cudnn_is_not_asked_to_split_a_head(platform, precision, tensor, fits):
    """Four heads over the devices of a mesh, of which a stand-in tells what is asked."""
    device = SimpleNamespace(platform=platform)
    mesh: Any = SimpleNamespace(
        shape={"tensor": tensor}, devices=SimpleNamespace(flat=[device] * tensor)
    )
    model = TransformerClassifier(vocab_size=9, num_classes=2, hidden_size=32, num_heads=4)
    with (
        contextlib.nullcontext()
        if fits
        else pytest.raises(ValueError, match="must divide the 4 attention heads")
    ):
        _check_heads(small_config(model=model, precision=precision), mesh)


def signal_when(monkeypatch, owner, method, is_due=lambda *_: True):
    """Sends the process SIGTERM when a method is called."""
    original = getattr(owner, method)

    def call(self, *args):
        if is_due(*args):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(owner, method, call)


def test_stopped_while_the_best_one_is_tested_the_newest_step_is_named(
    uninterrupted, tmp_path, monkeypatch
):
    whole, _ = uninterrupted
    monkeypatch.setattr(Selection, "best_step", lambda self, lines, task: lines and 15)
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:-1]))  # as before the test
    with monkeypatch.context() as patch:
        signal_when(patch, Loop, "evaluate", lambda state, split: int(state.step) == 15)
        with pytest.raises(Interrupted, match="SIGTERM: checkpoint saved at step 18; run"):
            train(small_config(), workdir)
    assert train(small_config(), workdir).metrics["step"] == 15


def test_a_signal_after_the_last_line_is_not_lost(uninterrupted, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], workdir)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_when(patch, MetricsFile, "finish")
        with pytest.raises(Interrupted, match="SIGTERM: nothing to save") as stopped:
            train(small_config(), workdir)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_report_is_written_says_so(uninterrupted, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(uninterrupted[0], workdir)
    (workdir / "report.html").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        signal_when(patch, ReportWriter, "finish")
        message = "SIGTERM: report not written; run the same command to write it"
        with pytest.raises(Interrupted, match=message) as stopped:
            flaxdl.train(small_config(), workdir)
    assert stopped.value.exit_code == 143
    assert not (workdir / "report.html").exists()
    flaxdl.train(small_config(), workdir)
    assert (workdir / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("n" * 300, "File name too long"), (os.fsdecode(b"\xff"), "names in UTF-8, got b'\\\\xff'")],
)
def test_a_workdir_with_an_impossible_name_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        train(small_config(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError):  # noqa: PT011
        flaxdl.evaluate(tmp_path / name)
    assert not Workdir(tmp_path / name).has_checkpoints


def test_everything_that_a_resumed_run_reads_is_on_disk(tmp_path, monkeypatch):
    synced = set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (synced.add(os.fstat(n).st_ino), fsync(n))[1])
    folder = Workdir(tmp_path)
    folder.claim(small_config(), {})
    (tmp_path / "tokenizer.json").write_text("{}")
    folder.sync()
    assert {path.stat().st_ino for path in (tmp_path, *tmp_path.iterdir())} <= synced
