"""Class weights and balanced sampling on imbalanced data with a balanced test split.

    nice python benchmarks/imbalance.py --seeds 5

Trains a small ResNet on grayscale `glyphs`, with 100 training images of every other class and 10 of
the rest, always for the same number of steps, and evaluates once on the whole test split, which has
100 images of each class. All variants of a seed have the same initial weights and the same training
images. Results are added to `results/imbalance_VENDOR.json`, so the script can be interrupted and
run again.
"""

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from recipe import SmallResNet
from sklearn.metrics import f1_score
from speed import HERE, processor, vendor

import flaxdl
from flaxdl.config import Config
from flaxdl.data import ArrayDataset, Images, Source, Splits, Tfds, evaluation_batches
from flaxdl.training import AdamW, Classification, Cosine

_METRICS = ("macro_f1", "accuracy", "frequent", "rare")


@dataclass(frozen=True)
class ImbalancedGlyphs(Source):
    """`glyphs` with few training images of the classes 1, 3, 5, ... and no validation split."""

    frequent: int = 100
    """Number of training images of each of the classes 0, 2, 4, ..."""
    rare: int = 10
    """Number of training images of each of the other classes."""

    def load(self, seed: int) -> Splits:
        """Chooses the training images at random; the test split is the whole one."""
        train, test, classes = glyphs()
        order = np.random.default_rng(seed).permutation(len(train["label"]))
        chosen = np.concatenate(
            [
                order[train["label"][order] == number][: self.rare if number % 2 else self.frequent]
                for number in range(len(classes))
            ]
        )
        subset = ArrayDataset({name: array[chosen] for name, array in train.items()})
        return Splits(subset, None, ArrayDataset(test), classes)


@cache
def glyphs() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...]]:
    """Returns all training images, all test images and the class names."""
    splits = Tfds("glyphs", validation_fraction=0.0).load(seed=0)
    assert splits.test is not None
    assert splits.classes is not None
    return splits.train.arrays(), splits.test.arrays(), splits.classes


BASE = Config(
    model=SmallResNet(),
    data=ImbalancedGlyphs(),
    transform=Images(mean=(0.5,), std=(0.3,), channels=1, crop_padding=2),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), weight_decay=0.05),
    batch_size=64,
    epochs=20,
)
VARIANTS = {
    "baseline": BASE,
    "class weights": replace(BASE, task=Classification(class_weights="balanced")),
    "balanced sampling": replace(BASE, balanced_sampling=True),
}


def measure(config: Config, seed: int) -> dict[str, float]:
    """Trains once; returns scores on the test split, and the duration in seconds.

    Macro-F1 is scikit-learn's; `frequent` and `rare` are the accuracies on these classes.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        result = flaxdl.train(replace(config, seed=seed), workdir, report=False)
    seconds = time.perf_counter() - start
    _, test, _ = glyphs()

    @jax.jit
    def predict(inputs: jax.Array) -> jax.Array:
        images = config.transform.normalize(inputs)
        logits: Any = result.model.apply(result.variables, images)
        return logits.argmax(-1)

    batches = evaluation_batches(ArrayDataset(test), config.transform, batch_size=100)
    predicted = np.concatenate([predict(batch["inputs"]) for batch in batches])
    is_right, is_rare = predicted == test["label"], test["label"] % 2 == 1
    scores = {
        "macro_f1": f1_score(test["label"], predicted, average="macro"),
        "accuracy": is_right.mean(),
        "frequent": is_right[~is_rare].mean(),
        "rare": is_right[is_rare].mean(),
    }
    assert abs(scores["accuracy"] - result.metrics["accuracy"]) < 1e-3
    return {name: round(float(score), 4) for name, score in scores.items()} | {
        "seconds": round(seconds, 1)
    }


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns mean scores, and differences from the baseline, as a Markdown table."""
    lines = [
        "| variant | macro-F1 | difference, median (range) | accuracy | frequent classes | rare "
        "classes |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, of_seeds in runs.items():
        means = {key: statistics.mean(run[key] for run in of_seeds.values()) for key in _METRICS}
        changes = [
            100 * (run["macro_f1"] - runs["baseline"][seed]["macro_f1"])
            for seed, run in of_seeds.items()
        ]
        change = f"{statistics.median(changes):+.1f} ({min(changes):+.1f} to {max(changes):+.1f})"
        lines.append(
            f"| {name} | {means['macro_f1']:.1%} | {'' if name == 'baseline' else change} | "
            + " | ".join(f"{means[key]:.1%}" for key in _METRICS[1:])
            + " |"
        )
    return "\n".join(lines)


def main(seeds: int = 5, out: Path = HERE / "results") -> None:
    """Measure all variants that are not in the results yet, and print a table.

    Args:
        seeds: Number of runs per variant, with seeds 0, 1, 2, ...
        out: Folder of the results.
    """
    path = out / f"imbalance_{vendor()}.json"
    machine = {"processor": processor().get("model name", "unknown"), "cores": os.cpu_count()}
    found = json.loads(path.read_text()) if path.exists() else {"machine": machine, "runs": {}}
    with tempfile.TemporaryDirectory() as cache_folder:
        jax.config.update("jax_compilation_cache_dir", cache_folder)
        for seed in range(seeds):
            for name, config in VARIANTS.items():
                of_seeds = found["runs"].setdefault(name, {})
                if str(seed) not in of_seeds:
                    of_seeds[str(seed)] = measure(config, seed)
                    path.write_text(json.dumps(found, indent=2) + "\n")
                    print(name, seed, of_seeds[str(seed)], flush=True)
    print(table(found["runs"]))


if __name__ == "__main__":
    tyro.cli(main)
