"""Runs written by earlier commits still resume, predict and report; see earlier_runs/make.py.

They ran on one device and resume on eight. Their checkpoints do not state their step, which those
of later versions do in flaxdl.json.
"""

import contextlib
import io
import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest
from earlier_runs.checkpoint_arrays import fingerprints, read_arrays

import flaxdl
from flaxdl.report.write import write_report
from flaxdl.runs.config_json import upgraded
from flaxdl.runs.restored import read_plan
from flaxdl.runs.workdir import Workdir
from flaxdl.training.checkpoints.manager import Checkpoints

pytestmark = pytest.mark.eight_devices

HERE = Path(__file__).parents[1] / "earlier_runs"
RUNS = {path.stem: path.with_suffix("") for path in sorted(HERE.glob("*/*.json"))}
FINISHED = {"digits_cnn", "text_table"}
CUSTOM_MODELS = {"digits_cnn", "narrow_resnet"}  # need their config file


def numbers(line):
    """The numbers of a line of metrics, except those that depend on the speed of the machine."""
    return {k: v for k, v in line.items() if k not in ("split", "examples_per_second")}


def close_to(values):
    return pytest.approx(values, rel=0, abs=1e-5)


def read_files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def contains(record, part):
    """Returns True if a JSON value has all keys and values of another one."""
    if isinstance(record, dict) and isinstance(part, dict):
        return all(name in record and contains(record[name], part[name]) for name in part)
    return record == part


@dataclass(frozen=True)
class EarlierRun:
    """A copy of a workdir, and the expected results of its run."""

    name: str
    workdir: Path
    config: flaxdl.Config | None
    """From the config file where that defines the model, otherwise None."""
    arrays: dict
    metrics: list
    predictions: dict

    @property
    def checkpoints(self):
        return {path.name: path for path in (self.workdir / "checkpoints").iterdir()}


@pytest.fixture(scope="module", params=RUNS)
def earlier(request, tmp_path_factory):
    name, folder = request.param, RUNS[request.param]
    workdir = shutil.copytree(folder, tmp_path_factory.mktemp(name) / "run")
    config = flaxdl.load_config(HERE / f"configs/{name}.py") if name in CUSTOM_MODELS else None
    expected = json.loads(folder.with_suffix(".json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HERE)  # the paths of data are relative
        yield EarlierRun(name, workdir, config, **expected)


@pytest.fixture(scope="module")
def resumed(earlier, tmp_path_factory):
    """The workdir after `flaxdl.train`, and its output."""
    workdir = shutil.copytree(earlier.workdir, tmp_path_factory.mktemp("resumed") / earlier.name)
    config = earlier.config or Workdir(workdir).config()
    with contextlib.redirect_stderr(io.StringIO()) as output:
        flaxdl.train(config, workdir, report=False)
    return workdir, output.getvalue()


def test_there_are_finished_and_stopped_runs():
    splits = {name: (path / "metrics.jsonl").read_text() for name, path in RUNS.items()}
    assert {name for name, text in splits.items() if '"test"' in text} == FINISHED
    assert len(RUNS) == 4


def test_checkpoints_do_not_state_their_step(earlier):
    for path in earlier.checkpoints.values():
        assert (path / "SHA256SUMS").exists()
        assert not (path / "flaxdl.json").exists()


def test_checkpoints_hold_the_arrays_that_were_saved(earlier):
    found = {step: fingerprints(read_arrays(path)) for step, path in earlier.checkpoints.items()}
    assert found == earlier.arrays


def test_every_checkpoint_is_restored_byte_for_byte(earlier, tmp_path):
    for step in earlier.arrays:
        workdir = shutil.copytree(earlier.workdir, tmp_path / step)
        for other in earlier.arrays.keys() - {step}:
            shutil.rmtree(workdir / "checkpoints" / other)
        plan = read_plan(workdir, earlier.config)
        with closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
            state = checkpoints.restore(plan.shapes(int(step)), int(step))
        assert int(state.step) == int(step)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        arrays = {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in leaves}
        assert fingerprints(arrays) == earlier.arrays[step]


def test_probabilities_are_those_of_the_earlier_version(earlier):
    predictions = flaxdl.predict(earlier.workdir, list(earlier.predictions), config=earlier.config)
    found = {prediction.item: prediction.probabilities for prediction in predictions}
    assert found.keys() == earlier.predictions.keys()
    for item, probabilities in found.items():
        assert probabilities == close_to(earlier.predictions[item])


def test_it_ends_as_if_it_had_never_been_stopped(earlier, resumed):
    workdir, _ = resumed
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    order = [(line["step"], line["split"]) for line in earlier.metrics]
    assert [(line["step"], line["split"]) for line in lines] == order
    for line, expected in zip(lines, earlier.metrics, strict=True):
        assert numbers(line) == close_to(numbers(expected))


def test_only_a_stopped_run_changes(earlier, resumed):
    workdir, output = resumed
    is_finished = earlier.name in FINISHED
    assert ("already finished" in output) == is_finished
    before, after = read_files(earlier.workdir), read_files(workdir)
    record = json.loads(before.pop("config.json"))
    record["config"] = upgraded(record["config"], earlier.config)
    # Later versions may add keys.
    assert contains(json.loads(after.pop("config.json")), record)
    assert (before.items() <= after.items()) == is_finished


def test_its_test_metrics_can_be_computed_again(earlier, resumed):
    workdir, _ = resumed
    last = earlier.metrics[-1]
    assert last["split"] == "test"
    metrics = flaxdl.evaluate(workdir, config=earlier.config)
    assert metrics | {"step": last["step"]} == close_to(numbers(last))


def test_it_has_a_report(earlier, resumed, tmp_path):
    workdir, _ = resumed
    page = write_report([workdir], tmp_path / "report.html", config=earlier.config).read_text()
    assert "<svg" in page
    for name in next(iter(earlier.predictions.values())):
        assert name in page
