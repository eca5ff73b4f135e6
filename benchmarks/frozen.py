"""Speedup of a training step when all parameters but the head are frozen.

    python benchmarks/frozen.py

Alternates both steps in one process, and prints the median times and the median ratio.
"""

import statistics
import time
from functools import partial
from typing import Any

import jax
import numpy as np
import tyro

from flaxdl.models import BERT_SMALL, BertForSequenceClassification, ResNet18
from flaxdl.training import AdamW, Classification, Steps

CASES: dict[str, tuple[Any, tuple[int, ...], tuple[str, ...]]] = {
    "ResNet18, 8 x 224 x 224": (
        ResNet18(num_classes=10),
        (8, 224, 224, 3),
        ("conv1.*", "bn1.*", "layer*"),
    ),
    "Bert of 4 layers, 16 x 64": (
        BertForSequenceClassification(num_classes=2, **BERT_SMALL),
        (16, 64),
        ("bert.*",),
    ),
}


def measure(model: Any, shape: tuple[int, ...], freeze: tuple[str, ...], rounds: int) -> str:
    """Returns a line with the milliseconds per step, all trainable and frozen, and their ratio."""
    rng = np.random.default_rng(0)
    is_text = len(shape) == 2
    batch = {
        "inputs": rng.integers(1, 1000, shape).astype(np.int32)
        if is_text
        else rng.standard_normal(shape, np.float32),
        "label": rng.integers(0, 2, shape[0]).astype(np.int32),
        "weight": np.ones(shape[0], np.float32),
    }
    trains, states = [], []
    for patterns in ((), freeze):
        steps = Steps(
            model=model,
            task=Classification(),
            optimizer=AdamW(learning_rate=1e-4, clip_norm=1.0),
            total_steps=100,
            freeze=patterns,
        )
        states.append(jax.jit(partial(steps.initial_state, batch))())
        trains.append(jax.jit(steps.train, donate_argnums=0))
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for which, train in enumerate(trains):
            start = time.perf_counter()
            states[which] = jax.block_until_ready(train(states[which], batch))
            times[which].append(time.perf_counter() - start)
    full, frozen = (np.array(seconds[1:]) for seconds in times)  # the first one compiles
    ratio = statistics.median(full / frozen)
    optimizer = [
        sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer_state)) / 2**20
        for state in states
    ]
    return (
        f"{1000 * np.median(full):.0f} ms and {1000 * np.median(frozen):.0f} ms, "
        f"{ratio:.2f} times as fast; optimizer state {optimizer[0]:.1f} and {optimizer[1]:.2f} MiB"
    )


def main(rounds: int = 10) -> None:
    """Compare training steps with and without frozen parameters.

    Args:
        rounds: Number of measurements of each step, after the first one, which compiles.
    """
    for name, (model, shape, freeze) in CASES.items():
        print(f"{name:<28} {measure(model, shape, freeze, rounds)}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
