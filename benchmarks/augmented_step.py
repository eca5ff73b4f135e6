"""Cost of the modern recipe's parts on the device: step times of ResNet-18 with and without them.

    python benchmarks/augmented_step.py

Each part is measured in alternation with the plain step, on 8 images of 224 x 224. Results, the
median ratio of the pairs and its 95 % confidence interval, are written to
`results/augmented_step_VENDOR.json`.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from speed import HERE, processor, vendor

from flaxdl.data import Images
from flaxdl.models import ResNet18
from flaxdl.training import EMA, SGD, Classification, Steps
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.parallel import compile_train

KIT = Images(random_erasing=0.1, mixup_alpha=0.2, cutmix_alpha=1.0)
PLAIN = Steps(
    model=ResNet18(num_classes=1000),
    task=Classification(label_smoothing=0.1),
    optimizer=SGD(learning_rate=0.1, momentum=0.9),
    total_steps=1000,
)
PARTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "random erasing, mixup and CutMix": {"augment": KIT.augment_batch},
    "EMA": {"ema": EMA(decay=0.999)},
    "EMA every 32 steps": {"ema": EMA(decay=0.999, every=32)},
    "drop path": {"model": ResNet18(num_classes=1000, drop_path_rate=0.1)},
    "all, with EMA every 32 steps": {
        "augment": KIT.augment_batch,
        "ema": EMA(decay=0.999, every=32),
        "model": ResNet18(num_classes=1000, drop_path_rate=0.1),
    },
}


def stepper(steps: Steps, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    """Returns a function that takes a training step and returns its duration in seconds."""
    mesh = make_mesh()
    steps = replace(steps, mesh=mesh)
    state = jax.jit(steps.initial_state)(batch)
    train = compile_train(steps, mesh, "jit", state)
    states = [jax.block_until_ready(train(state, batch))]

    def step() -> float:
        start = time.perf_counter()
        states.append(jax.block_until_ready(train(states.pop(), batch)))
        return time.perf_counter() - start

    return step


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the order statistics that contain the median with a probability of at least 95 %."""
    count = len(values)
    outside, low = 0.0, 0
    while 2 * (outside + math.comb(count, low) / 2**count) <= 0.05:
        outside += math.comb(count, low) / 2**count
        low += 1
    if low == 0:
        raise ValueError(f"{count} pairs are too few for an interval of 95 %; 6 are the least")
    ordered = sorted(values)
    return ordered[low - 1], ordered[count - low]


def main(pairs: int = 24, out: Path = HERE / "results") -> None:
    """Measure the parts and print a table.

    Args:
        pairs: Number of pairs of steps, without and with a part.
        out: Folder of the results.
    """
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.normal(size=(8, 224, 224, 3)).astype(np.float32),
        "label": rng.integers(0, 1000, 8).astype(np.int32),
        "weight": np.ones(8, np.float32),
    }
    found, plain = {}, stepper(PLAIN, batch)
    print("| part | plain step, ms | step, ms | ratio (95 % interval) |\n|---|---|---|---|")
    for name, changes in PARTS.items():
        step = stepper(replace(PLAIN, **changes), batch)
        times = [(plain(), step()) for _ in range(pairs)]
        before, after = (1000 * statistics.median(column) for column in zip(*times, strict=True))
        ratios = [one / other for other, one in times]
        low, high = confidence_interval(ratios)
        found[name] = {
            "plain_ms": round(before, 1),
            "ms": round(after, 1),
            "ratio": round(statistics.median(ratios), 3),
            "interval": [round(low, 3), round(high, 3)],
        }
        ratio = f"{found[name]['ratio']:.3f} ({low:.3f} to {high:.3f})"
        print(f"| {name} | {before:.0f} | {after:.0f} | {ratio} |", flush=True)
    machine = {"processor": processor().get("model name", "unknown"), "cores": os.cpu_count()}
    path = out / f"augmented_step_{vendor()}.json"
    path.write_text(
        json.dumps({"machine": machine, "pairs": pairs, "parts": found}, indent=2) + "\n"
    )


if __name__ == "__main__":
    tyro.cli(main)
