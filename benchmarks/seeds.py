"""Measures the test metrics of configs over several seeds, as given in their docstrings.

    python benchmarks/seeds.py digits_cnn digits_lenet --seeds 5

Each run is a separate process with its own workdir. Prints mean, standard deviation and range of
every metric on the test split, and of the seconds per run.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

TRAIN = Path(__file__).parent.parent / "train.py"


def measure(config: Path, seed: int) -> dict[str, float]:
    """Trains once, and returns the test metrics and the duration in seconds."""
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        flags = ["--config", str(config), "--seed", str(seed), "--workdir", workdir]
        subprocess.run([sys.executable, str(TRAIN), *flags], check=True, capture_output=True)
        seconds = time.perf_counter() - start
        last = json.loads((Path(workdir) / "metrics.jsonl").read_text().splitlines()[-1])
    return {k: v for k, v in last.items() if k not in ("step", "split")} | {"seconds": seconds}


def main(configs: tyro.conf.Positional[tuple[Path, ...]], seeds: int = 5) -> None:
    """Print a line for each metric of each config.

    Args:
        configs: Configs, by name or as Python files.
        seeds: Number of runs per config, with seeds 0, 1, 2, ...
    """
    for config in configs:
        runs = [measure(config, seed) for seed in range(seeds)]
        for name in runs[0]:
            values = [run[name] for run in runs]
            spread = statistics.stdev(values) if seeds > 1 else 0.0
            print(
                f"{config.stem:<24} {name:<16} {statistics.mean(values):.4f} ± {spread:.4f}  "
                f"({min(values):.4f} to {max(values):.4f}, {seeds} seeds)",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(main)
