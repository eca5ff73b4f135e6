"""Stops runs at random moments, resumes them, and compares the final results bit for bit.

    nice python benchmarks/kills.py --kills 200 --terminations 50

Half of the runs train a CNN with BatchNorm and dropout, half an LSTM. Runs that get a SIGTERM
compile again each time, so that some signals arrive during compilation. Writes the results to
benchmarks/results/.
"""

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

HERE = Path(__file__).parent
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
sys.path.insert(0, str(HERE.parent / "tests"))

from helpers import stopping  # noqa: E402

RESULTS = HERE / "results" / "kills.json"


def main(kills: int = 200, terminations: int = 50, seed: int = 0) -> None:
    """Stop and resume runs; report the number of stops and their duration by signal and phase.

    Args:
        kills: Number of SIGKILLs.
        terminations: Number of SIGTERMs.
        seed: Random seed of the moments.
    """
    start, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in stopping.CONFIGS:
            for number, count in ((signal.SIGKILL, kills), (signal.SIGTERM, terminations)):
                work = Path(folder) / f"{name}-{number}"
                work.mkdir()
                # A run that is killed while it compiles loses nothing, but SIGTERM ends it there.
                cache = f"{folder}/cache" if number == signal.SIGKILL else None
                whole, seconds = stopping.uninterrupted(name, work, cache=cache)
                random = np.random.default_rng((seed, number))
                phases = stopping.stop_and_compare(
                    name, whole, seconds, work, number, count // 2, random, cache=cache
                )
                found[f"{number.name} {name}"] = {
                    phase: {"stops": len(took), "longest_seconds": round(max(took), 2)}
                    for phase, took in sorted(phases.items())
                }
                print(number.name, name, found[f"{number.name} {name}"], flush=True)
    text = {"all_ended_the_same": True, **found, "minutes": round((time.monotonic() - start) / 60)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
