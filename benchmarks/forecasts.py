"""Compares forecasts of `el_nino_gru` with those of linear models and of the seasonal naive one.

    nice python benchmarks/forecasts.py

Trains the configs `el_nino_gru` and `el_nino_linear` with several seeds, and solves a linear
autoregression for each step of the horizon by least squares, on the same training windows. All are
evaluated on the same test windows, beginning at every step (rolling origin). Writes MAE, RMSE and
MASE, and the ratios of MAE to that of the seasonal naive forecast and to that of the least squares
solution, to benchmarks/results/forecasts.json.
"""

import json
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import tyro

import flaxdl
from flaxdl import Config
from flaxdl.config_files import load_config
from flaxdl.data import Dataset

RESULTS = Path(__file__).parent / "results" / "forecasts.json"
CONFIGS = ("el_nino_gru", "el_nino_linear")


def least_squares(train: Dataset, test: Dataset) -> dict[str, float]:
    """Returns the errors of linear autoregressions with an intercept, solved exactly.

    There is a single series, C = 1, so windows are flattened to [N, context] and [N, horizon].
    """
    windows, held_out = train.arrays(), test.arrays()
    center = windows["inputs"].mean()

    def design(inputs: np.ndarray) -> np.ndarray:
        return np.concatenate([inputs[..., 0] - center, np.ones((len(inputs), 1))], axis=1)

    target = windows["label"][..., 0] - center
    weights, *_ = np.linalg.lstsq(design(windows["inputs"]), target, rcond=None)
    error = design(held_out["inputs"]) @ weights + center - held_out["label"][..., 0]
    naive = np.abs(held_out["naive"] - held_out["label"]).mean()
    mae = float(np.abs(error).mean())
    return {
        "mae": mae,
        "rmse": float(np.sqrt(np.square(error).mean())),
        "mase": mae / float(held_out["naive_error"][0, 0]),
        "relative_mae": mae / float(naive),
        "naive_mae": float(naive),
    }


def measure(config: Config, seed: int) -> dict[str, float]:
    """Trains a config with a seed and returns its test metrics, and the seconds it took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        result = flaxdl.train(replace(config, seed=seed), workdir, report=False)
    return result.metrics | {"seconds": round(time.perf_counter() - start, 1)}


def main(seeds: int = 5, out: Path = RESULTS) -> None:
    """Measures all configs.

    Args:
        seeds: number of seeds.
        out: file to write.
    """
    folder = Path(__file__).parent.parent / "configs"
    configs = {name: load_config(folder / f"{name}.py") for name in CONFIGS}
    splits = configs[CONFIGS[0]].data.load(0)
    assert splits.test is not None
    solved = least_squares(splits.train, splits.test)
    results = {"date": date.today().isoformat(), "seeds": seeds, "least_squares": solved}
    for name, config in configs.items():
        runs = [measure(config, seed) for seed in range(seeds)]
        for run in runs:
            run["ratio_to_least_squares"] = run["mae"] / solved["mae"]
        names = ("mae", "rmse", "mase", "relative_mae", "ratio_to_least_squares", "seconds")
        results[name] = {
            metric: {
                "mean": float(np.mean([run[metric] for run in runs])),
                "std": float(np.std([run[metric] for run in runs], ddof=1)),
                "runs": [run[metric] for run in runs],
            }
            for metric in names
        }
        print(name, {metric: round(results[name][metric]["mean"], 4) for metric in names})
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
