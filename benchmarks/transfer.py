"""Value of pretraining with few examples: from scratch, frozen, and fine-tuned.

    python train.py --config configs/glyphs_resnet.py
    python benchmarks/transfer.py configs/digits_transfer.py --seeds 5

Each seed trains on its own stratified 1 %, 5 % and 100 % of the training split, and is evaluated
once on the whole test split, after the last step. Prints a Markdown table.
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
STEPS = 200  # in every cell of the table, for a fair comparison


def accuracy(
    config: Config, way: Way, *, fraction: float, seed: int, validation_fraction: float
) -> float:
    """Trains on a fraction of the training split and returns the accuracy on held-out data.

    Args:
        config: the fine-tuning run.
        way: use of the pretrained network.
        fraction: fraction of the training split.
        seed: random seed of the subset and of the training.
        validation_fraction: 0 evaluates on the test split; otherwise this fraction of the training
            split is held out for evaluation, to choose settings.
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
    """Print a table of accuracies.

    Args:
        config: Config file of the fine-tuning run.
        seeds: Number of runs per cell.
        fractions: Fractions of the training split.
        validation_fraction: Fraction of the training split to evaluate on instead of the test
            split.
    """
    base = load_config(config)
    print("| fraction of the training split | from scratch | frozen base | fine-tuned |")
    print("|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)  # all seeds compile the same programs
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
