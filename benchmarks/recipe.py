"""Ablation of the modern training recipe on few examples: each part is added to those before it.

    nice python benchmarks/recipe.py --seeds 5

Trains a small ResNet on a tenth of the training split of `glyphs`, always with the same number of
steps, and evaluates once on the whole test split. All variants of a seed have the same initial
weights and the same training examples. Results are added to `results/recipe_VENDOR.json`, so the
script can be interrupted and run again.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import tyro
from speed import HERE, processor, vendor

import flaxdl
from flaxdl.config import Config
from flaxdl.data import Images, RandAugment, Tfds, TrivialAugmentWide
from flaxdl.layers import BatchNorm, Linear, drop_path_rates
from flaxdl.models.resnet import BasicBlock, conv
from flaxdl.training import EMA, AdamW, Classification, Cosine


class SmallResNet(nn.Module):
    """ResNet of three blocks with 24, 48 and 96 channels, for runs of less than a minute."""

    num_classes: int = 62
    drop_path_rate: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K]."""
        x = conv(24, 3, stride=2, name="conv1")(images)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        for i, rate in enumerate(drop_path_rates(self.drop_path_rate, 3)):
            x = BasicBlock(24 * 2**i, 1 if i == 0 else 2, rate, name=f"layer{i + 1}.0")(x, train)
        return Linear(self.num_classes, name="fc")(x.mean((1, 2)))


BASE = Config(
    model=SmallResNet(),
    data=Tfds("glyphs"),
    transform=Images(mean=(0.5,), std=(0.3,), crop_padding=2),
    optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup_steps=100), weight_decay=0.05),
    train_fraction=0.1,
    batch_size=64,
    epochs=24,
    evaluate_every=24,
)


def with_transform(**changes: Any) -> Callable[[Config], Config]:
    """Returns a function that changes fields of the transform."""
    return lambda config: replace(config, transform=replace(config.transform, **changes))


ALONE = "TrivialAugmentWide"  # added to the baseline only
PARTS: dict[str, Callable[[Config], Config]] = {
    "baseline": lambda config: config,
    "RandAugment 5": with_transform(augment=RandAugment(magnitude=5, interpolation="bilinear")),
    "random erasing 0.1": with_transform(random_erasing=0.1),
    "label smoothing 0.1": lambda config: replace(config, task=Classification(label_smoothing=0.1)),
    "mixup 0.2": with_transform(mixup_alpha=0.2),
    "CutMix 1.0": with_transform(cutmix_alpha=1.0),
    "EMA 0.99": lambda config: replace(config, ema=EMA(decay=0.99)),
    "drop path 0.1": lambda config: replace(config, model=config.model.clone(drop_path_rate=0.1)),
    "repeated augmentation 4": lambda config: replace(config, repeated_augmentation=4),
}


def variants() -> dict[str, Config]:
    """Returns the config with each part added to those before it, and the one with `ALONE`."""
    configs, config = {}, BASE
    for name, add in PARTS.items():
        config = add(config)
        configs[name] = config
    configs[ALONE] = with_transform(augment=TrivialAugmentWide(interpolation="bilinear"))(BASE)
    return configs


def measure(config: Config, seed: int) -> dict[str, float]:
    """Trains once; returns accuracy and loss on the test split, and the duration in seconds."""
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        metrics = flaxdl.train(replace(config, seed=seed), workdir).metrics
        seconds = round(time.perf_counter() - start, 1)
    return {name: round(metrics[name], 4) for name in ("accuracy", "loss")} | {"seconds": seconds}


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Returns test accuracies, and differences from the variant before, as a Markdown table."""
    lines = [
        "| added part | accuracy, mean (range) | difference, median (range) |",
        "|---|---|---|",
    ]
    previous = "baseline"
    for name, of_seeds in runs.items():
        before = runs["baseline" if name == ALONE else previous]
        values = [run["accuracy"] for run in of_seeds.values()]
        changes = [
            100 * (run["accuracy"] - before[seed]["accuracy"])
            for seed, run in of_seeds.items()
            if seed in before
        ]
        lines.append(
            f"| {name} | {statistics.mean(values):.1%} ({min(values):.1%} to {max(values):.1%}) | "
            f"{statistics.median(changes):+.1f} ({min(changes):+.1f} to {max(changes):+.1f}) |"
        )
        previous = name
    return "\n".join(lines)


def main(seeds: int = 5, out: Path = HERE / "results") -> None:
    """Measure all variants that are not in the results yet, and print a table.

    Args:
        seeds: Number of runs per variant, with seeds 0, 1, 2, ...
        out: Folder of the results.
    """
    path = out / f"recipe_{vendor()}.json"
    machine = {"processor": processor().get("model name", "unknown"), "cores": os.cpu_count()}
    found = json.loads(path.read_text()) if path.exists() else {"machine": machine, "runs": {}}
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)  # all seeds compile the same programs
        for seed in range(seeds):
            for name, config in variants().items():
                of_seeds = found["runs"].setdefault(name, {})
                if str(seed) in of_seeds:
                    continue
                of_seeds[str(seed)] = measure(config, seed)
                found["runs"] = {
                    name: found["runs"][name] for name in variants() if name in found["runs"]
                }
                path.write_text(json.dumps(found, indent=2) + "\n")
                print(name, seed, of_seeds[str(seed)], flush=True)
    print(table(found["runs"]))


if __name__ == "__main__":
    tyro.cli(main)
