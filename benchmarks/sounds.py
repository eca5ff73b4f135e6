"""Measures the accuracy on generated sounds by signal-to-noise ratio, over several seeds.

    nice python benchmarks/sounds.py; python docs/images.py --sounds

Trains configs/sounds_cnn.py, which reads log-mel spectrograms, and configs/sounds_cnn1d.py, which
reads waveforms. Writes the accuracy on the test sounds by signal-to-noise ratio to
benchmarks/results/sounds.json. A run that is already in the file is not trained again.
"""

import dataclasses
import json
import tempfile
import time
from datetime import date
from pathlib import Path

import jax
import numpy as np
import tyro

import flaxdl
from flaxdl.data import Sounds, evaluation_batches, sounds

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "sounds.json"
CONFIGS = ("sounds_cnn", "sounds_cnn1d")
WIDTH = 5  # dB of a group in the results
BATCH_SIZE = 100


def measure(name: str, seed: int) -> dict[str, object]:
    """Trains a config and returns its accuracy, in total and by signal-to-noise ratio."""
    config = flaxdl.load_config(ROOT / "configs" / f"{name}.py")
    config = dataclasses.replace(config, seed=seed)
    assert isinstance(config.data, Sounds)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as workdir:
        run = flaxdl.train(config, workdir, report=False).run
    seconds = time.process_time() - start
    test = config.data.load(seed).test
    assert test is not None
    predict = jax.jit(run.inference.predict)
    batches = evaluation_batches(test, run.transform, batch_size=BATCH_SIZE)
    predicted = [np.argmax(predict(run.state, run.put(batch)), axis=-1) for batch in batches]
    is_correct = np.concatenate(predicted)[: len(test)] == test.labels()
    snr = sounds.generate("test", len(test)).snr
    return {
        "accuracy": round(float(is_correct.mean()), 4),
        "by_snr": {
            f"{low}-{low + WIDTH}": round(float(is_correct[snr // WIDTH == low // WIDTH].mean()), 4)
            for low in range(0, 30, WIDTH)
        },
        "processor_seconds": round(seconds),
    }


def main(configs: tuple[str, ...] = CONFIGS, seeds: int = 5, to: Path = RESULTS) -> None:
    """Measure and store the accuracy by signal-to-noise ratio.

    Args:
        configs: Configs to train.
        seeds: Number of runs per config, with seeds 0, 1, 2, ...
        to: Results file.
    """
    results = json.loads(to.read_text()) if to.exists() else {"configs": {}}
    for seed in range(seeds):
        for name in configs:
            stored = results["configs"].setdefault(name, {})
            if str(seed) not in stored:
                stored[str(seed)] = measure(name, seed)
                print(name, seed, stored[str(seed)], flush=True)
                results["date"] = date.today().isoformat()
                to.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
