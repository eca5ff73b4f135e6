"""The writer of Weights & Biases, on a module that notes what it is asked."""

import sys
from types import ModuleType

import pytest
from helpers.small_runs import small_config

import flaxdl
from flaxdl.runs.config_json import to_json
from flaxdl.training.writers.weights_and_biases import WeightsAndBiasesWriter


class FakeWandb(ModuleType):
    """`wandb` as far as it is used: `init`, and of a run `define_metric`, `log` and `finish`."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.logged, self.axes, self.finished = [], [], [], 0

    def init(self, **settings):
        if settings["project"] == "forbidden":
            (settings["dir"] / "wandb").mkdir(exist_ok=True)  # as wandb leaves it
            raise self.Error("no API key configured")
        self.begun.append(settings)
        (settings["dir"] / "wandb" / "offline-run-20260102_030405-abc123").mkdir(
            parents=True, exist_ok=True
        )
        return self

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, numbers):
        self.logged.append(numbers)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_every_line_is_sent_and_a_run_goes_on_as_the_same(wandb, tmp_path):
    config = small_config(epochs=2.0)
    result = flaxdl.train(config, tmp_path / "mine", wandb="quadrants", report=False)
    assert wandb.begun[0] == {
        "project": "quadrants",
        "name": "mine",
        "dir": tmp_path / "mine",
        "id": None,
        "resume": "allow",
        "config": to_json(config),
    }
    assert wandb.axes == [("*", "step")]
    splits = [name.partition("/")[0] for line in wandb.logged for name in line if "/loss" in name]
    assert splits == ["train", "validation", "train", "train", "validation", "test"]
    assert wandb.logged[-1]["test/accuracy"] == result.metrics["accuracy"]
    assert wandb.logged[-1]["step"] == result.metrics["step"]
    assert wandb.finished == 1
    flaxdl.train(config, tmp_path / "mine", wandb="quadrants", report=False)
    assert wandb.begun[1]["id"] == "abc123"


def test_a_refusal_is_one_message(wandb, tmp_path):
    with pytest.raises(ValueError, match="Weights & Biases cannot be used: no API key"):
        flaxdl.train(small_config(), tmp_path / "new", wandb="forbidden")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_takes_no_earlier_runs_away(wandb, tmp_path):
    (tmp_path / "wandb").mkdir()
    with pytest.raises(ValueError, match="no API key"):
        WeightsAndBiasesWriter("forbidden", tmp_path, config={})
    assert (tmp_path / "wandb").exists()


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'flaxdl\[wandb\]'"):
        flaxdl.train(small_config(), tmp_path, wandb="quadrants", report=False)
