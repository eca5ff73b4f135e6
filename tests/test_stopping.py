"""Runs stopped at random moments end as if nothing had happened; benchmarks/kills.py does more."""

import gc
import os
import signal
import time

import numpy as np
import pytest
from helpers import stopping
from helpers.sampling import sampled
from helpers.soak import ENDLESS, growth, soak

from flaxdl.training.interruption import Interrupted, Interruption


@pytest.fixture(scope="module", params=sampled(sorted(stopping.CONFIGS), "small_cnn".__eq__))
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, *stopping.uninterrupted(request.param, folder)


def stop(whole, number, stops):
    name, folder, workdir, seconds = whole
    random = np.random.default_rng(int(number))
    phases = stopping.stop_and_compare(name, workdir, seconds, folder, number, stops, random)
    assert sum(map(len, phases.values())) == stops
    return max(took for phase in phases.values() for took in phase)


def test_killed_at_random_moments_it_ends_the_same(whole):
    stop(whole, signal.SIGKILL, 3)


def test_asked_to_stop_at_random_moments_it_ends_the_same(whole):
    number, stops = {"small_cnn": (signal.SIGTERM, 3), "small_lstm": (signal.SIGINT, 2)}[whole[0]]
    assert stop(whole, number, stops) < 10


STUCK = """
import time
from dataclasses import dataclass
from pathlib import Path
from helpers.small_runs import small_config
from flaxdl.data import Images
from flaxdl.training import Selection

@dataclass(frozen=True)
class StuckImages(Images):
    def prepare(self, batch, draws):
        if draws and WHERE == "data" and Path("started").exists():
            time.sleep(1000)
        return super().prepare(batch, draws)

@dataclass(frozen=True)
class StuckSelection(Selection):
    def best_step(self, lines, task):
        if WHERE == "selection":
            Path("started").touch()
            time.sleep(1000)
        return super().best_step(lines, task)

config = small_config(transform=StuckImages(crop_padding=1), selection=StuckSelection())
"""


@pytest.fixture
def stuck(tmp_path, monkeypatch):
    """Starts a run that gets stuck after some steps: in `data` or in `selection`."""
    monkeypatch.chdir(tmp_path)

    def start(where):
        config = tmp_path / f"stuck_in_{where}.py"
        config.write_text(f"WHERE = {where!r}\n" + STUCK)
        run = stopping.Run(config, tmp_path / "run")
        run.start()
        if where == "data":
            wait_for(run.workdir / "metrics.jsonl", run)
            (tmp_path / "started").touch()
        wait_for(tmp_path / "started", run)
        time.sleep(1)
        return run

    return start


def wait_for(path, run):
    deadline = time.monotonic() + stopping.LONGEST
    while not (path.exists() and (path.name == "started" or path.stat().st_size)):
        assert time.monotonic() < deadline, run.output
        time.sleep(0.01)


def test_stuck_in_the_data_it_saves_and_ends(stuck):
    run = stuck("data")
    _, seconds = run.stop(signal.SIGTERM)
    assert seconds < 10
    assert run.process.exitcode == 143
    assert "SIGTERM: checkpoint saved at step " in run.output


def test_a_second_sigint_stops_at_once(stuck):
    run = stuck("selection")
    os.kill(run.process.pid, signal.SIGINT)
    run.process.join(1)
    assert run.process.is_alive()  # the first waits for the end of the step
    _, seconds = run.stop(signal.SIGINT)
    assert seconds < 5
    assert run.process.exitcode == 130
    assert run.output.endswith("interrupted\n")


def test_a_signal_while_garbage_is_collected_is_not_lost():
    def stop(phase, info):
        gc.callbacks.remove(stop)
        os.kill(os.getpid(), signal.SIGTERM)

    def collect_and_wait():
        gc.collect()
        time.sleep(10)

    interruption = Interruption()
    with interruption.listening():
        gc.callbacks.append(stop)
        with pytest.raises(Interrupted, match="SIGTERM"):
            collect_and_wait()
    assert interruption.poll() == signal.SIGTERM


def test_a_run_takes_no_more_of_the_machine_as_it_goes_on(tmp_path):
    run = stopping.Run(stopping.CONFIGS["small_cnn"], tmp_path / "run", flags=ENDLESS)
    samples, saved = soak(run, seconds=8, every=0.2)
    assert saved > 6
    grown = growth(samples)
    assert grown["memory"] < 20  # MiB
    # One left behind by each save would be two thirds of them.
    assert grown["threads"] < saved / 3
    assert grown["files"] < saved / 3
