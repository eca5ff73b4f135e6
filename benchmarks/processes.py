"""Trains `digits_cnn` with one and two processes, and resumes with one, two and four.

    python benchmarks/processes.py

All runs have four simulated devices, in one, two or four processes on this machine. A run with two
processes is stopped in the middle, and its checkpoint is resumed with each number of processes.
Writes the final metrics, and the maximum difference of the training losses from those of one
process, to `benchmarks/results/processes.json`.
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
STOP_AFTER = 1000  # of 2,000 steps


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics so far."""
    file = workdir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run(workdir: Path, count: int, *, stop: bool = False) -> None:
    """Trains to the end, or until one process gets a SIGTERM."""
    processes = start(CONFIG, workdir, count=count, devices=DEVICES // count)
    while stop and not any(line["step"] >= STOP_AFTER for line in lines_of(workdir)):
        time.sleep(0.05)
    if stop:
        processes[-1].send_signal(signal.SIGTERM)
    for code, errors in finish(processes, timeout=3600):
        if code != (143 if stop else 0):
            raise RuntimeError(f"{count} processes ended with {code}: {errors}")


def summary(workdir: Path, reference: Path) -> dict[str, Any]:
    """Returns the test metrics of a run, and the difference of its losses from the reference."""
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
    """Run all cases and record the results."""
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
            workdir = shutil.copytree(stopped, Path(folder) / f"resumed_as_{count}")
            run(workdir, count)
            name = f"2 processes, stopped, resumed as {count}"
            results[name] = summary(workdir, one)
            print(name, results[name], flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
