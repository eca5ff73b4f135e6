"""Workdirs in buckets: kills, damages, a faulty network, overhead and memory.

    nice python benchmarks/remote_runs.py --part kills --scheme s3

The bucket is on a server on this machine: moto for `s3`, gcp-storage-emulator for `gs`. Each part
adds its results to benchmarks/results/remote_runs.json.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tyro

HERE = Path(__file__).parent
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
sys.path[0] = str(HERE.parent / "tests")

from helpers import buckets, remote_runs, stopping  # noqa: E402
from helpers.damage import damage_file  # noqa: E402
from helpers.soak import ENDLESS, growth, soak  # noqa: E402

import flaxdl  # noqa: E402
from flaxdl.filesystem.remote import RemoteFolder  # noqa: E402
from flaxdl.filesystem.snapshots import Snapshots  # noqa: E402
from flaxdl.runs import mirror  # noqa: E402
from flaxdl.runs.remote_workdir import reading_copy  # noqa: E402
from flaxdl.training.checkpoints.folder import CheckpointFolder  # noqa: E402

RESULTS = HERE / "results" / "remote_runs.json"
Part = Literal["kills", "damages", "faults", "overhead", "memory"]


def kills(bucket: str, folder: Path, count: int) -> dict[str, Any]:
    """Kills runs at random moments, deletes their local files, and resumes from the bucket."""
    whole, seconds = stopping.uninterrupted("small_cnn", folder)
    random = np.random.default_rng(0)
    phases = remote_runs.kill_and_compare(f"{bucket}/run", whole, seconds, count, random)
    return {"kills_by_phase": dict(phases), "all_ended_the_same": True}


def damages(bucket: str, folder: Path, count: int) -> dict[str, Any]:
    """Damages one object of a finished run at a time, and reads the run."""
    run = remote_runs.remote_run(f"{bucket}/run")
    run.start()
    assert run.wait() == 0, run.output
    remote, random, found = RemoteFolder(run.url), np.random.default_rng(0), Counter()
    snapshots = Snapshots(remote, "")
    newest = snapshots.read(snapshots.names()[0])
    stored = sorted({file.object for file in newest.files.values()} | {newest.name})
    assert len(snapshots.names()) == 2
    steps = {int(name.split("/")[1]) for name in newest.files if name.startswith("checkpoints/")}
    for number in range(count):
        name = stored[random.integers(len(stored))]
        original, local = remote.read(name), folder / "object"
        local.write_bytes(original)
        kind = damage_file(local, random)
        remote.remove([name])
        if kind != "removed":
            remote.upload(local, name)
        os.environ["FLAXDL_CACHE"] = str(folder / f"reading {number}")
        checkpoints = CheckpointFolder(reading_copy(run.url) / "checkpoints")
        for step in checkpoints.steps():
            checkpoints.check(step)  # raises CorruptCheckpoint
        if kind == "removed" and name == newest.name:
            outcome = "the snapshot before is the newest one"
        elif set(checkpoints.steps()) == steps:
            outcome = "another file is damaged; the snapshot before is used"
        else:
            outcome = "a checkpoint is damaged; another one is used"
            assert len(checkpoints.steps()) == len(steps) - 1
        found[outcome] += 1
        remote.write(name, original)
    return {"damages": count, "outcomes": dict(found), "all_detected": True}


def faults(bucket: str, folder: Path, count: int) -> dict[str, Any]:
    """Lets runs end while a fifth of all requests fail."""
    whole, _ = stopping.uninterrupted("small_cnn", folder)
    requests = Counter()
    for number in range(count):
        with (
            pytest.MonkeyPatch.context() as patch,
            buckets.faulty(patch, bucket, fraction=0.2, seed=number) as proxy,
        ):
            remote_runs.run_and_compare(remote_runs.remote_run(f"{bucket}/run-{number}"), whole)
            requests += proxy.counts
    return {"runs": count, "requests": dict(requests), "all_ended_the_same": True}


class StepTimes(flaxdl.Writer):
    """Records the time at which each step begins."""

    def __init__(self):
        self.times: list[float] = []

    def progress(self, step: int) -> None:
        """Called before each step."""
        self.times.append(time.perf_counter())


def overhead(bucket: str, folder: Path, count: int) -> dict[str, Any]:
    """Compares steps of a CNN on digits with a local workdir and one in a bucket, in pairs."""
    config = flaxdl.load_config(HERE.parent / "configs" / "digits_cnn.py")
    config = replace(config, epochs=8.0, evaluate_every=1.0)
    mirror._CHECKPOINT_INTERVAL = 0.0  # more often than in ordinary runs
    pairs, processor, copies = [], [], []
    for number in range(count + 1):
        measured = {}
        for place in ("local", "bucket") if number % 2 else ("bucket", "local"):
            url = f"{bucket}/run-{number}" if place == "bucket" else str(folder / f"run-{number}")
            steps, start = StepTimes(), time.process_time()
            flaxdl.train(config, url, report=False, writers=[steps])
            seconds = time.process_time() - start
            measured[place] = (statistics.median(np.diff(steps.times)), seconds)
        if number:  # the first pair compiles
            pairs.append(measured["bucket"][0] / measured["local"][0])
            processor.append(measured["bucket"][1] - measured["local"][1])
            names = Snapshots(RemoteFolder(f"{bucket}/run-{number}"), "").names()
            copies.append(int(names[0].split("/")[1].split("-")[0]))
    return {
        "pairs": count,
        "step_time_ratio": _median_with_interval(pairs),
        "processor_seconds_per_snapshot": round(
            statistics.median(processor) / statistics.median(copies), 3
        ),
        "snapshots_per_run": statistics.median(copies),
    }


def memory(bucket: str, folder: Path, count: int) -> dict[str, Any]:
    """Trains for a while with frequent checkpoints, and measures the growth per checkpoint."""
    run = remote_runs.remote_run(f"{bucket}/run", flags=ENDLESS)
    samples, saved = soak(run, seconds=count, every=1.0)
    grown = growth(samples)
    between = saved * 2 / 3  # from the middle of the first third to that of the last
    return {
        "seconds": count,
        "checkpoints": saved,
        "growth": {name: round(value, 1) for name, value in grown.items()},
        "kilobytes_per_checkpoint": round(grown["memory"] * 1024 / between, 1),
    }


def _median_with_interval(values: list[float]) -> list[float]:
    """Returns the median with its 95 % interval by resampling."""
    random = np.random.default_rng(0)
    medians = np.median(random.choice(values, (10_000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return [round(float(value), 4) for value in (np.median(values), low, high)]


@contextmanager
def served(scheme: str) -> Iterator[str]:
    """Context manager that serves buckets in another process, and yields the URL of a new one."""
    parent, child = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(scheme, child), daemon=True)
    process.start()
    address, bucket = parent.recv()
    buckets.point_to(pytest.MonkeyPatch(), scheme, address)
    buckets.server = lambda _: address
    try:
        yield bucket
    finally:
        process.kill()


def _serve(scheme: str, connection: Any) -> None:
    connection.send((buckets.server(scheme), buckets.new_bucket(scheme)))
    time.sleep(10**6)


def main(part: Part, scheme: Literal["s3", "gs"] = "s3", count: int = 50) -> None:
    """Measure one part, and record it.

    Args:
        part: What to measure.
        scheme: Kind of bucket.
        count: Number of kills, damages, runs or pairs of runs; for memory, seconds.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, served(scheme) as bucket:
        os.environ["FLAXDL_CACHE"] = f"{folder}/cache"
        found = globals()[part](bucket, Path(folder), count)
    found |= {"seconds_in_all": round(time.monotonic() - start), "processor": _processor()}
    print(json.dumps(found, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    recorded[f"{part} {scheme}"] = found
    RESULTS.write_text(json.dumps(recorded, indent=2) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    tyro.cli(main)
