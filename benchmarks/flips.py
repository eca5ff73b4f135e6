"""Corrupts checkpoints at random, and checks that the previous one is restored each time.

    python benchmarks/flips.py --times 1000

Flips single bits, truncates files and removes them. Writes the counts to benchmarks/results/.
"""

import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import tyro

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from helpers import damage  # noqa: E402

RESULTS = HERE / "results" / "flips.json"


def main(times: int = 1000, seed: int = 0) -> None:
    """Corrupt checkpoints and count the kinds of damage; stops at the first failure.

    Args:
        times: Number of checkpoints to corrupt.
        seed: Random seed of the damage.
    """
    logging.getLogger("flaxdl").setLevel(logging.ERROR)
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        sound, work = Path(folder) / "sound", Path(folder) / "work"
        sound.mkdir()
        before, _ = damage.save_two(sound)
        done = [damage.recover(sound, work, before, random) for _ in range(times)]
    kinds = Counter(kind for kind, _ in done)
    found = {"noticed_and_recovered": len(done), **kinds, "different_files": len(set(done))}
    print(found)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
