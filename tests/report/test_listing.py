"""`flaxdl runs`: what it says of runs in every state, without training any."""

import json
import os
from dataclasses import dataclass, replace

import pytest
from helpers.small_runs import small_config

from flaxdl.cli import main
from flaxdl.data import ImageFolder, Images
from flaxdl.models import LeNet5
from flaxdl.report.listing import list_runs
from flaxdl.runs.workdir import Workdir
from flaxdl.training import AdamW, Selection
from flaxdl.training.writers.metrics_file import MetricsFile

pytestmark = pytest.mark.quick

CONFIG = small_config(epochs=5, selection=Selection(metric="accuracy"))
FACTS = {
    "classes": ["a", "b", "c", "d"],
    "steps_per_epoch": 4,
    "example": {"inputs": {"shape": [8, 8, 1], "dtype": "uint8"}},
}


def make(path, config, *lines, hours=0):
    """A workdir with these lines of metrics: step, split, accuracy."""
    folder = Workdir(path)
    folder.claim(config, FACTS)
    metrics = MetricsFile(folder.metrics)
    for step, split, accuracy in lines:
        metrics.append(step, split, {"loss": 1 - accuracy, "accuracy": accuracy})
    if lines:
        os.utime(folder.metrics, (1.8e9 + 3600 * hours,) * 2)
    return folder


@dataclass(frozen=True)
class Own(Images):
    """A class of the user's own, which `runs` does not need."""

    extra: int = 0


@pytest.fixture
def runs(tmp_path):
    """Runs in every state below one folder."""
    make(
        tmp_path / "done", CONFIG, (10, "validation", 0.7), (20, "validation", 0.6),
        (10, "test", 0.75), hours=4,
    )  # fmt: skip
    longer = replace(CONFIG, epochs=50, optimizer=AdamW(learning_rate=0.5))
    make(
        tmp_path / "deep" / "stopped", longer, (10, "validation", 0.7), (20, "validation", 0.6),
        (25, "train", 0.9), hours=3,
    )  # fmt: skip
    by_heart = replace(CONFIG, overfit_batches=1)
    make(tmp_path / "heart", by_heart, (5, "train", 0.3), (10, "train", 1.0), hours=2)
    own = replace(CONFIG, transform=Own(extra=3))
    make(tmp_path / "own", own, (5, "validation", 0.25), hours=1)
    patient = replace(CONFIG, selection=Selection(patience=1), model=LeNet5(num_classes=4))
    make(tmp_path / "patient", patient, (5, "validation", 0.5), (10, "validation", 0.4))
    return tmp_path


def test_runs_are_listed_with_state_scores_and_differences(runs):
    found = {run.path.relative_to(runs).as_posix(): run for run in list_runs(runs)}
    assert list(found) == ["done", "deep/stopped", "heart", "own", "patient"]  # the newest first
    states = [(run.state, run.step, run.total_steps) for run in found.values()]
    assert states == [
        ("finished", 20, 20),
        ("stopped", 25, 200),
        ("finished early", 10, 20),
        ("stopped", 5, 20),
        ("finished early", 10, 20),
    ]
    scores = [(run.split, run.scores["accuracy"]) for run in found.values()]
    assert scores == [
        ("test", 0.75),
        ("validation", 0.7),
        ("train", 1.0),
        ("validation", 0.25),
        ("validation", 0.5),
    ]
    done = found["done"].differing
    names = ("epochs", "optimizer.learning_rate", "optimizer.schedule", "overfit_batches")
    assert [done[name] for name in names] == ["5", "0.002", "Cosine", "none"]
    assert found["deep/stopped"].differing["epochs"] == "50"
    assert found["deep/stopped"].differing["optimizer.learning_rate"] == "0.5"
    assert found["own"].differing["transform.extra"] == "3"
    assert not {"seed", "batch_size", "data", "optimizer"} & set(done)  # the same in all
    assert found["patient"].differing == {}  # no other run has this model


def test_data_of_the_same_name_in_other_folders_differ(tmp_path):
    for folder in ("old", "new"):
        config = replace(CONFIG, data=ImageFolder(f"/data/{folder}/pets"))
        make(tmp_path / folder, config, (5, "validation", 0.5))
    found = {run.path.name: run.differing["data.path"] for run in list_runs(tmp_path)}
    assert found == {"old": "/data/old/pets", "new": "/data/new/pets"}


def test_a_run_that_is_going_on_is_running(runs):
    with Workdir(runs / "deep" / "stopped").locked():
        states = {run.path.name: run.state for run in list_runs(runs)}
    assert states["stopped"] == "running"
    assert states["own"] == "stopped"


def test_what_cannot_be_read_is_listed_and_what_is_no_run_is_not(runs):
    (runs / "bert").mkdir()
    (runs / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (runs / "own" / "config.json").write_text("{")
    with (runs / "heart" / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    unreadable = [run for run in list_runs(runs) if run.state == "unreadable"]
    assert sorted(run.path.name for run in unreadable) == ["heart", "own"]
    assert "config.json cannot be read" in next(r.fault for r in unreadable if r.path.name == "own")
    assert "metrics.jsonl, line 3" in next(r.fault for r in unreadable if r.path.name == "heart")


def test_a_run_without_metrics_has_no_scores(tmp_path):
    make(tmp_path / "new", CONFIG)
    (run,) = list_runs(tmp_path)
    assert (run.state, run.step, run.split, run.scores) == ("stopped", 0, None, {})


@pytest.mark.parametrize(("name", "message"), [("no", "no folder .*no;"), ("", "no runs in")])
def test_without_runs_there_is_an_error(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        list_runs(tmp_path / name)


def test_the_list_is_printed_as_a_table_or_as_json(runs, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    assert main(["runs", "."]) == 0
    lines = capsys.readouterr().out.splitlines()
    (stopped,) = [line for line in lines if "deep/stopped" in line]
    assert "stopped, step 25 of 200" in stopped
    assert "validation loss 0.3000  accuracy 0.7000" in stopped
    assert "epochs 50" in stopped
    assert main(["runs", ".", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["path"] for record in records][:2] == ["done", "deep/stopped"]
    assert records[0]["scores"] == {"loss": 0.25, "accuracy": 0.75}
    assert records[1]["differing"]["epochs"] == "50"
    assert main(["runs"]) == 2  # there is no folder called runs
    assert "there is no folder runs" in capsys.readouterr().err
