"""A workdir that belongs to another run is refused before anything is loaded or touched."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from helpers.small_runs import small_config, train

import flaxdl
from flaxdl import Init
from flaxdl.data import Arrays
from flaxdl.runs.session import Session
from flaxdl.runs.workdir import Workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(small_config(epochs=1.0), folder)
    return folder


def everything_in(folder):
    """Names, contents and times of all files."""
    return {
        path: (path.read_bytes(), os.stat(path).st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Unloadable(Arrays):
    """Data that must not be loaded."""

    def load(self, seed):
        raise AssertionError("the data were loaded")


def test_another_config_is_refused_before_data_are_loaded_and_files_are_touched(workdir):
    # An unfinished checkpoint, which a run that may train here would remove, and a damaged one.
    (workdir / "checkpoints" / "999.partial").mkdir()
    before = everything_in(workdir)
    other = small_config(data=Unloadable("nowhere.npz"), init=Init(weights="resnet50"))
    with pytest.raises(flaxdl.UserError, match="has a run of another config"):
        train(other, workdir)
    assert everything_in(workdir) == before
    assert (workdir / "checkpoints" / "999.partial").is_dir()


def test_other_data_are_refused_before_checkpoints_are_touched(workdir):
    config = small_config(epochs=1.0)
    record = json.loads((workdir / "config.json").read_text())
    changed = json.loads(json.dumps(record))
    changed["data"]["splits"]["train"]["examples"] += 1
    (workdir / "config.json").write_text(json.dumps(changed))
    (workdir / "checkpoints" / "1000.partial").mkdir()
    before = everything_in(workdir)
    with pytest.raises(flaxdl.UserError, match="has a run of other data"):
        train(config, workdir)
    assert everything_in(workdir) == before
    assert (workdir / "checkpoints" / "1000.partial").is_dir()
    (workdir / "config.json").write_text(json.dumps(record))


def test_initial_weights_that_do_not_fit_leave_nothing_behind(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    config = small_config(init=Init(weights=str(tmp_path / "weights.safetensors")))
    with pytest.raises(flaxdl.UserError, match="weights.safetensors"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_session_says_where_the_run_resumes(workdir):
    config = small_config(epochs=1.0)
    with Session.open(Workdir(workdir), config) as session:
        setup = session.set_up()
        state = session.begin(setup)
        assert session.start == int(state.step) == setup.total_steps
        assert session.is_over
        session.claim(setup)
        assert not session.metrics.appended
    longer = replace(config, epochs=2.0)
    with Session.open(Workdir(workdir), longer, accept_changes=True) as session:
        setup = session.set_up()
        session.begin(setup)
        assert 0 < session.start < setup.total_steps
        assert not session.is_over


def test_the_best_state_is_handed_on(workdir, tmp_path, monkeypatch):
    """The last state is the best here, and is not read back from disk."""
    restored = []
    restore = flaxdl.training.checkpoints.manager.Checkpoints.restore

    def noted(self, *arguments):
        restored.append(arguments)
        return restore(self, *arguments)

    monkeypatch.setattr("flaxdl.training.checkpoints.manager.Checkpoints.restore", noted)
    result = train(small_config(epochs=1.0), tmp_path)
    assert not restored
    assert result.run.state.step == result.run.total_steps
    assert result.model is result.run.model


def test_something_else_than_a_writer_is_refused_before_training(tmp_path):
    with pytest.raises(flaxdl.UserError, match=r"writers must be instances of flaxdl\.Writer"):
        train(small_config(), tmp_path / "run", writers=[print])
    assert not (tmp_path / "run").exists()


def test_the_mode_of_operations_is_recorded_and_a_change_is_named(tmp_path, caplog):
    config = small_config(epochs=1.0)
    with flaxdl.ops.reference():
        train(config, tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["versions"]["flaxdl.ops"] == "reference"
    longer = replace(config, epochs=2.0)
    train(longer, tmp_path, accept_changes=True)
    assert "versions have changed since this run began: flaxdl.ops reference → fast" in caplog.text
    caplog.clear()
    del record["versions"]["flaxdl.ops"]  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(record))
    with flaxdl.ops.reference():
        train(replace(config, epochs=3.0), tmp_path, accept_changes=True)
    assert "flaxdl.ops fast → reference" in caplog.text


def test_a_run_without_its_config_is_resumed_where_that_is_accepted(workdir, tmp_path, caplog):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    longer = small_config(epochs=2.0)
    with pytest.raises(flaxdl.UserError, match="has a run of unknown origin"):
        train(longer, tmp_path / "run")
    result = train(longer, tmp_path / "run", accept_changes=True)
    assert result.metrics["step"] > 0
    assert "resuming a run of unknown origin" in caplog.text


def test_a_workdir_that_cannot_be_claimed_is_left_empty(tmp_path, monkeypatch):
    def refuse(*_):
        raise flaxdl.UserError("the workdir cannot be written")

    monkeypatch.setattr("flaxdl.runs.workdir.Workdir.claim", refuse)
    with pytest.raises(flaxdl.UserError, match="the workdir cannot be written"):
        train(small_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_holds_no_optimizer_state(workdir):
    result = train(small_config(epochs=1.0), workdir)
    assert result.run.state.optimizer_state == ()
    assert flaxdl.restore(workdir, small_config()).state.optimizer_state == ()


class Recorder(flaxdl.Writer):
    """Notes what it is told."""

    def __init__(self):
        self.calls = []

    def line(self, line):
        self.calls.append((line["split"], line["step"]))

    def finish(self, run):
        self.calls.append(("finish", int(run.state.step)))

    def close(self):
        self.calls.append(("close", None))


def test_a_writer_is_told_of_the_end_once_with_the_best_checkpoint(tmp_path):
    recorder = Recorder()
    result = train(small_config(epochs=1.0), tmp_path, writers=[recorder])
    assert recorder.calls[-3:] == [
        ("test", result.metrics["step"]),
        ("finish", result.metrics["step"]),
        ("close", None),
    ]
    again = Recorder()
    train(small_config(epochs=1.0), tmp_path, writers=[again])
    assert again.calls == [("finish", result.metrics["step"]), ("close", None)]
