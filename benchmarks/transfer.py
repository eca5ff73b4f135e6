"""What pretraining is worth with few examples: from scratch, frozen, and fine-tuned.

    python train.py --config configs/glyphs_resnet.py
    python benchmarks/transfer.py configs/digits_transfer.py --seeds 5

Each seed learns from its own 1 %, 5 % and 100 % of the training split, every class giving its part,
and is scored once on the whole test split, after the last step. Prints a table in Markdown.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

import flaxdl
from flaxdl.config import Config
from flaxdl.config_files import load_config

Way = Literal["scratch", "frozen", "fine-tuned"]
WAYS: dict[Way, dict[str, Any]] = {
    "scratch": {"init": flaxdl.Init()},
    "frozen": {"freeze": ("conv1.*", "bn1.*", "layer*")},
    "fine-tuned": {},
}
STEPS = 200  # in every cell, so that none is better for being longer


def accuracy(
    config: Config, way: Way, *, fraction: float, seed: int, validation_fraction: float
) -> float:
    """Trains on a share of the training split and returns the accuracy on what is not trained on.

    Args:
        config: the fine-tuning run.
        way: how much of the pretrained network is used.
        fraction: share of the training split.
        seed: decides which share, and all chance.
        validation_fraction: zero scores on the test split; otherwise this share of the training
            split is held out and scored instead, to choose settings by.
    """
    data: Any = dataclasses.replace(config.data, validation_fraction=validation_fraction)
    splits = data.load(seed)
    examples = round(fraction * len(splits.train))
    batch_size = min(config.batch_size, examples)
    epochs = STEPS / (examples // batch_size)
    run = dataclasses.replace(
        config,
        data=data,
        train_fraction=fraction,
        batch_size=batch_size,
        epochs=epochs,
        evaluate_every=epochs,
        log_every=STEPS,
        seed=seed,
        **WAYS[way],
    )
    with tempfile.TemporaryDirectory() as workdir:
        flaxdl.train(run, workdir)
        split = "validation" if validation_fraction else "test"
        return flaxdl.evaluate(workdir, split)["accuracy"]


def main(
    config: tyro.conf.Positional[Path],
    seeds: int = 5,
    fractions: tuple[float, ...] = (0.01, 0.05, 1.0),
    validation_fraction: float = 0.0,
) -> None:
    """Prints the table.

    Args:
        config: The config of the fine-tuning run.
        seeds: How many runs behind each number.
        fractions: Shares of the training split.
        validation_fraction: Held out of the training split and scored in the place of the test.
    """
    base = load_config(config)
    print("| share of the training split | from scratch | frozen base | fine-tuned |")
    print("|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)  # the same programs for all seeds
        for fraction in fractions:
            cells = []
            for way in WAYS:
                values = [
                    accuracy(
                        base,
                        way,
                        fraction=fraction,
                        seed=seed,
                        validation_fraction=validation_fraction,
                    )
                    for seed in range(seeds)
                ]
                spread = statistics.stdev(values) if seeds > 1 else 0.0
                cells.append(f"{statistics.mean(values):.1%} ± {100 * spread:.1f}")
            print(f"| {fraction:.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
