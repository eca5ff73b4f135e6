"""Soak test: trains for half an hour and checks that memory, threads and open files do not grow.

    python benchmarks/soak.py --minutes 30

Writes the results to benchmarks/results/soak.json.
"""

import json
import sys
import tempfile
from pathlib import Path

import tyro

HERE = Path(__file__).parent
sys.path[0] = str(HERE.parent / "tests")

from helpers import stopping  # noqa: E402
from helpers.soak import ENDLESS, growth, soak  # noqa: E402

RESULTS = HERE / "results" / "soak.json"


def main(minutes: float = 30) -> None:
    """Print and record first and last sample, extremes and growth.

    Args:
        minutes: Duration of the training in minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = stopping.Run(stopping.CONFIGS["small_cnn"], Path(folder) / "run", flags=ENDLESS)
        samples, saved = soak(run, seconds=60 * minutes, every=2.0)
    found = {
        "minutes": minutes,
        "samples": len(samples),
        "checkpoints_saved": saved,
        **{
            name: {
                "first": round(samples[0][name]),
                "last": round(samples[-1][name]),
                "least": round(min(sample[name] for sample in samples)),
                "most": round(max(sample[name] for sample in samples)),
                "growth": round(grown, 1),
            }
            for name, grown in growth(samples).items()
        },
    }
    print(json.dumps(found, indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
