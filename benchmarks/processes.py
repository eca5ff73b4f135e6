"""Trains `digits_cnn` as one process and as two, and goes on as one, two and four.

    python benchmarks/processes.py

All runs have four simulated devices, in one, two or four processes of this machine. The run of two
is asked to stop in the middle, and what it saved is gone on with by each number of processes.
Writes the last lines of metrics, and the largest difference of the training losses from those of
one process, to `benchmarks/results/processes.json`.
"""

import json
import shutil
import signal
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.launch import finish, start  # noqa: E402

CONFIG = ROOT / "configs" / "digits_cnn.py"
RESULTS = ROOT / "benchmarks" / "results" / "processes.json"
DEVICES = 4
STOP_BEHIND = 1000  # steps of 2,000


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics so far."""
    file = workdir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(workdir: Path, count: int, *, stop: bool = False) -> None:
    """Trains to the end, or until one process is asked to stop."""
    processes = start(CONFIG, workdir, count=count, devices=DEVICES // count)
    while stop and not any(line["step"] >= STOP_BEHIND for line in lines_of(workdir)):
        time.sleep(0.05)
    if stop:
        processes[-1].send_signal(signal.SIGTERM)
    for code, errors in finish(processes, timeout=3600):
        if code != (143 if stop else 0):
            raise RuntimeError(f"{count} processes ended with {code}: {errors}")


def summary(workdir: Path, reference: Path) -> dict[str, Any]:
    """How a run ended, and how far its training losses are from the reference's."""
    ours, theirs = lines_of(workdir), lines_of(reference)
    pairs = zip(ours, theirs, strict=True)
    differences = [abs(a["loss"] - b["loss"]) for a, b in pairs if a["split"] == "train"]
    test = ours[-1]
    return {
        "test_accuracy": test["accuracy"],
        "test_examples_right": test["accuracy"] * 360,
        "test_step": test["step"],
        "largest_difference_of_training_loss": max(differences),
    }


def main() -> None:
    """Runs all and records them."""
    results: dict[str, Any] = {"jax": metadata.version("jax"), "devices": DEVICES}
    with tempfile.TemporaryDirectory() as folder:
        one, two, stopped = (Path(folder) / name for name in ("one", "two", "stopped"))
        run(one, 1)
        results["1 process"] = summary(one, one)
        run(two, 2)
        results["2 processes"] = summary(two, one)
        print(json.dumps(results, indent=2), flush=True)
        run(stopped, 2, stop=True)
        steps = [int(path.name) for path in (stopped / "checkpoints").iterdir()]
        results["stopped at step"] = max(steps)
        for count in (1, 2, 4):
            workdir = shutil.copytree(stopped, Path(folder) / f"goes_on_as_{count}")
            run(workdir, count)
            name = f"2 processes, stopped, gone on with as {count}"
            results[name] = summary(workdir, one)
            print(name, results[name], flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
