"""Runs of several real processes: the same as alone, stopped together, wrong together."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from helpers.launch import by_open_mpi, by_slurm, finish, start, write_config
from helpers.sampling import sampled


def metric_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours, theirs):
    """The same lines, numbers to the rounding that other sums bring with them."""
    for our, their in zip(metric_lines(ours), metric_lines(theirs), strict=True):
        assert our.keys() == their.keys()
        for name in our.keys() - {"split", "examples_per_second"}:
            np.testing.assert_allclose(our[name], their[name], rtol=2e-2, atol=5e-3, err_msg=name)


def wait_for_line(workdir, processes):
    """Returns when the first line of metrics is written."""
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() or not metric_lines(workdir):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert finish(start(config, workdir, count=1, devices=4))[0][0] == 0
    return workdir


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    """A run of two processes, of which one was told to stop."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    processes = start(config, workdir)
    wait_for_line(workdir, processes)
    processes[1].send_signal(signal.SIGTERM)
    return workdir, finish(processes)


def test_a_signal_to_one_stops_all_at_the_same_step(stopped):
    workdir, ends = stopped
    assert [code for code, _ in ends] == [143, 143]
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 25 <= step < 240
    for _, errors in ends:
        assert f"SIGTERM: checkpoint saved at step {step}" in errors


@pytest.mark.parametrize(
    ("count", "devices", "told", "flags"),
    [
        pytest.param(1, 4, None, [], marks=pytest.mark.whole),
        pytest.param(
            *(2, 2, by_slurm, ["--mesh.fsdp", "2", "--mesh.tensor", "2"]), marks=pytest.mark.whole
        ),
        (2, 2, by_open_mpi, []),
        pytest.param(4, 1, by_open_mpi, [], marks=pytest.mark.whole),
        pytest.param(2, 2, by_slurm, ["--parallel", "pmap"], marks=pytest.mark.whole),
    ],
)
def test_it_goes_on_with_any_number_of_processes(
    config, alone, stopped, tmp_path, count, devices, told, flags
):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    ends = finish(start(config, workdir, *flags, count=count, devices=devices, told=told))
    assert [code for code, _ in ends] == [0] * count, ends
    assert "resuming from step" in ends[0][1]
    if flags[:1] != ["--parallel"]:  # pmap draws other dropout masks
        assert_same_run(workdir, alone)
    *_, line_before, last = metric_lines(workdir)
    assert (line_before["step"], last["split"]) == (240, "test")
    # Every one of the 37 test examples was counted, and once.
    assert last["accuracy"] * 37 == pytest.approx(round(last["accuracy"] * 37), abs=1e-4)
    assert last["accuracy"] > 0.9
    for _, errors in ends[1:]:
        assert "step" not in errors  # only the first process reports
    page = (workdir / "report.html").read_text()
    assert ("the run was trained by several processes" in page) == (count > 1)


@pytest.mark.parametrize("victim", sampled([0, 1], (1).__eq__))
def test_when_one_is_killed_the_others_end(config, tmp_path, victim):
    workdir = tmp_path / "run"
    processes = start(config, workdir, "--epochs", "100000")
    wait_for_line(workdir, processes)
    processes[victim].kill()
    start_time = time.monotonic()
    code, errors = finish(processes)[1 - victim]
    assert time.monotonic() - start_time < 60
    assert code != 0
    # Whichever notices first: this process, when it needs the other one, or JAX's heartbeat.
    assert "another process has died" in errors or "another task died" in errors
    if victim == 1:
        ((code, errors),) = finish(
            start(config, workdir, "--epochs", "20", "--accept-changes", count=1, devices=4)
        )
        assert code == 0, errors


@pytest.mark.parametrize(
    ("flags", "flags_of", "message"),
    [
        pytest.param(
            *(["--mesh.fsdp", "3"], {}, "the mesh must use all 4 devices, got data any, fsdp 3"),
            marks=pytest.mark.whole,
        ),
        pytest.param(
            *(["--batch-size", "18"], {}, "batch_size must be a multiple of the 4 devices"),
            marks=pytest.mark.whole,
        ),
        ([], {1: ["--seed", "7", "--mesh.fsdp", "2"]}, "process 1: config.seed: 0 → 7"),
    ],
)
def test_a_mistake_is_told_by_every_process(config, tmp_path, flags, flags_of, message):
    for code, errors in finish(start(config, tmp_path / "run", *flags, flags_of=flags_of)):
        assert code == 2
        assert message in errors
        assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_one_process_ends_all(tmp_path):
    config = tmp_path / "half.py"
    config.write_text(
        "import jax\n"
        "from dataclasses import dataclass\n"
        "from helpers.small_runs import quadrant_source, small_config\n"
        "from flaxdl.data import Arrays, Source\n"
        "@dataclass(frozen=True)\n"
        "class Half(Source):\n"
        "    def load(self, seed):\n"
        "        if jax.process_index() == 1:\n"
        "            return Arrays('/there/is/no/data.npz').load(seed)\n"
        "        return quadrant_source().load(seed)\n"
        "config = small_config(data=Half())\n"
    )
    first, second = finish(start(config, tmp_path / "run"))
    assert (first[0], second[0]) == (2, 2)
    assert "process 1 has stopped:" in first[1]
    assert "process 1 has stopped:" not in second[1]
    for _, errors in (first, second):
        assert "/there/is/no/data.npz" in errors


def test_an_error_of_one_process_in_training_ends_all(tmp_path):
    config, lines = tmp_path / "late.py", tmp_path / "run" / "metrics.jsonl"
    config.write_text(
        "import jax, os\n"
        "from dataclasses import dataclass\n"
        "from helpers.small_runs import small_config\n"
        "from flaxdl.data import Images\n"
        "@dataclass(frozen=True)\n"
        "class Late(Images):\n"
        "    def prepare(self, batch, draws):\n"
        f"        if jax.process_index() == 1 and os.path.exists({str(lines)!r}):\n"
        "            raise KeyError('too late')\n"
        "        return super().prepare(batch, draws)\n"
        "config = small_config(transform=Late(flip=True), epochs=100000, log_every=25)\n"
    )
    processes = start(config, tmp_path / "run")
    deadline = time.monotonic() + 120
    while not lines.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    start_time = time.monotonic()
    (first, _), (second, errors) = finish(processes)
    assert time.monotonic() - start_time < 60
    assert first != 0
    assert second == 2
    place = "late.py, line 9, in prepare"
    assert errors.splitlines()[-1].startswith("this error was raised by your code: ")
    assert errors.splitlines()[-1].endswith(place)
