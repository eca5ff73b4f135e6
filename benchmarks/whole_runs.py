"""Duration of whole runs compared with PyTorch's, and of their parts.

    python benchmarks/whole_runs.py                      everything for a CPU
    python benchmarks/whole_runs.py --parts pipeline     only the input pipeline

- `digits`: `train.py --config configs/digits_cnn.py` from a cold start, with a warm compilation
  cache, and the same training in PyTorch, in turn.
- `loop`: examples per second of the loop, including logging and checkpoints, relative to its step.
- `pipeline`: examples per second of the input pipeline alone.
- `small`: on a GPU, the loop with data on the device and many steps per call, and eager PyTorch.

The results are written to `results/whole_runs.json`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

import flaxdl
from flaxdl.backend.malloc import keep_freed_memory, synchronous_dispatch
from flaxdl.config import Config
from flaxdl.config_files import load_config
from flaxdl.data import Arrays, Dataset, ImageFolder, Images, Tfds, Transform, training_batches
from flaxdl.data.image_files import read_image
from flaxdl.data.resizing import center_crop
from flaxdl.models import ResNet18
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.setup import set_up
from flaxdl.training.distributed.placement import put_batch

HERE = Path(__file__).parent
DIGITS = HERE.parent / "configs" / "digits_cnn.py"


def digits(rounds: int) -> dict[str, Any]:
    """Measures whole runs, alternating in each round: cold, warm, PyTorch."""
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": [], "pytorch": []}
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/digits.npz"
        splits = vars(set_up(load_config(DIGITS)).splits)
        named = {
            f"{split}_{name}": array
            for split in ("train", "validation", "test")
            for name, array in splits[split].arrays().items()
        }
        np.savez(data, **named)
        for number in range(rounds):
            cache = {"XDG_CACHE_HOME": f"{folder}/cache{number}"}
            for kind in ("cold", "warm"):
                workdir = f"{folder}/{kind}{number}"
                arguments = ["timed_run.py", "--config", str(DIGITS), "--workdir", workdir]
                figures = _run(arguments, cache) | _rates(Path(workdir))
                found[kind].append(figures)
            found["pytorch"].append(_run(["digits_pytorch.py", data], {}))
    return {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for kind, runs in found.items()
    }


def _run(arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Returns the last line of a script's output, and the duration of the process."""
    others = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / arguments[0]), *arguments[1:]],
        env=others | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]) | {"process_s": time.perf_counter() - start}


def _rates(workdir: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["examples_per_second"] for line in lines if line["split"] == "train"]
    return {
        "accuracy": lines[-1]["accuracy"],
        "examples_per_second": statistics.median(rates[1:]),  # the first interval compiles
    }


def loop(rounds: int) -> dict[str, Any]:
    """Measures the rate of the loop relative to its step alone with a batch on the device."""
    images = np.random.default_rng(0).integers(0, 256, (256, 224, 224, 3), dtype=np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % 10
    source = Arrays.from_memory(train_inputs=images, train_label=labels, validation_fraction=0.25)
    base = load_config(DIGITS)
    resnet = replace(
        base,
        model=ResNet18(num_classes=10),
        data=source,
        transform=Images(crop_padding=8, flip=True),
        batch_size=8,
        epochs=2,
        evaluate_every=1,
        log_every=12,
    )
    configs = {"digits_cnn": replace(base, epochs=100), "resnet18": resnet}
    return {name: _loop_and_step(config, rounds) for name, config in configs.items()}


def _loop_and_step(config: Config, rounds: int) -> dict[str, float]:
    setup = set_up(config)
    train = jax.jit(setup.steps.train, donate_argnums=0)
    with closing(setup.training_batches()) as batches:
        # `put_batch` leaves small arrays on the host for a single CPU device.
        batch = jax.device_put(put_batch(next(batches), setup.mesh))
    ratios, steps, loops = [], [], []
    for _ in range(rounds):
        state = jax.block_until_ready(train(initial_state(setup), batch))
        start = time.perf_counter()
        state = jax.block_until_ready(train(state, batch))
        count = max(round(3.0 / (time.perf_counter() - start)), 10)
        start = time.perf_counter()
        for _ in range(count):
            state = train(state, batch)
        jax.block_until_ready(state)
        steps.append(count * config.batch_size / (time.perf_counter() - start))
        with tempfile.TemporaryDirectory() as workdir:
            flaxdl.train(config, workdir)
            loops.append(_rates(Path(workdir))["examples_per_second"])
        ratios.append(loops[-1] / steps[-1])
    return {
        "step": statistics.median(steps),
        "loop": statistics.median(loops),
        "ratio": statistics.median(ratios),
    }


def pipeline(rounds: int) -> dict[str, Any]:
    """Measures examples per second of wall time, and per second of one core."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_inputs": rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8),
        "train_label": np.zeros(50_000, np.int32),
    }
    small = Arrays.from_memory(**arrays).load(0).train
    augmented = Images(crop_padding=4, flip=True)
    found = {
        "in memory, 32 x 32 x 3": _stream(small, Images(), 128, rounds),
        "in memory, 32 x 32 x 3, shifted and flipped": _stream(small, augmented, 128, rounds),
    }
    found["ArrayRecord, 8 x 8"] = _stream(_digits_in_files(), Images(), 128, rounds)
    with tempfile.TemporaryDirectory() as folder:
        found |= _photographs(Path(folder), rounds)
    return found


def _digits_in_files() -> Dataset:
    """Loads the digits dataset in a way that reads its files; a run keeps it in memory."""
    from flaxdl.data import tfds

    limit, tfds._MEMORY_LIMIT = tfds._MEMORY_LIMIT, -1
    try:
        return Tfds("digits").load(0).train
    finally:
        tfds._MEMORY_LIMIT = limit


def _stream(dataset: Dataset, transform: Transform, batch: int, rounds: int) -> dict[str, float]:
    rates, by_core = [], []
    transform = transform.fit(dataset)
    for _ in range(rounds):
        with closing(
            training_batches(transform.apply(dataset), transform, batch_size=batch, seed=0)
        ) as batches:
            for _ in range(10):
                next(batches)
            start, processor, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - start < 2:
                next(batches)
                count += batch
            rates.append(count / (time.perf_counter() - start))
            by_core.append(count / (time.process_time() - processor))
    return {"per_second": statistics.median(rates), "per_core": statistics.median(by_core)}


def _photographs(folder: Path, rounds: int) -> dict[str, Any]:
    """Measures decoding and center-cropping 500 x 375 JPEGs to 224, with and without pipeline."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(300):
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    paths = sorted(folder.glob("*/*.jpg"))

    def bare() -> float:
        processor = time.process_time()
        for path in paths:
            center_crop(read_image(path, 3), size=224, shorter_side=256)
        return len(paths) / (time.process_time() - processor)

    train = ImageFolder(str(folder), validation_fraction=0.0, test_fraction=0.0).load(0).train
    transform = Images(size=224, resize=256)
    alone = statistics.median(bare() for _ in range(rounds))
    stream = _stream(train, transform, 32, rounds)
    return {
        "JPEG folder, 500 x 375": stream | {"share_of_bare_decoding": stream["per_core"] / alone},
        "bare decoding of the same": {"per_core": alone},
    }


def small(rounds: int) -> dict[str, Any]:
    """Measures examples per second of SimpleCNN on the digits in bfloat16, with a batch of 128.

    Ours are measured over the whole loop, which logs, evaluates and saves. PyTorch repeats its
    eager step with one batch that is already on the device.
    """
    from speed_rows import ROWS
    from speed_workers import PyTorch, measure

    row = replace(ROWS["simple_cnn_8"], gpu_batch=128)
    config = replace(
        load_config(DIGITS),
        transform=Images(),
        precision="bfloat16",
        epochs=500,
        evaluate_every=100,
        log_every=250,
    )
    found: dict[str, list[float]] = {"one step at a time": [], "50 at once": [], "pytorch": []}
    with tempfile.TemporaryDirectory() as folder:
        pytorch = PyTorch(row, Path(folder), gpu=True, compiled=False).prepare("train")
        for number in range(rounds):
            for name, count in (("one step at a time", 1), ("50 at once", 50)):
                workdir = f"{folder}/{count}-{number}"
                flaxdl.train(replace(config, steps_per_call=count), workdir, report=False)
                found[name].append(_rates(Path(workdir))["examples_per_second"])
            found["pytorch"].append(1000 * row.gpu_batch / measure(pytorch, seconds=2)["ms"])
    rates = {name: statistics.median(values) for name, values in found.items()}
    return rates | {"device": jax.devices()[0].device_kind}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "digits": digits,
    "loop": loop,
    "pipeline": pipeline,
    "small": small,
}


def main(
    parts: tuple[Literal["digits", "loop", "pipeline", "small"], ...] = (
        "digits",
        "loop",
        "pipeline",
    ),
    rounds: int = 3,
    out: Path = HERE / "results" / "whole_runs.json",
) -> None:
    """Measure, and write the results after each part.

    Args:
        parts: Parts to measure.
        rounds: Number of measurements, for the medians.
        out: Output file.
    """
    with synchronous_dispatch(), keep_freed_memory():  # as a run does
        _measure(parts, rounds, out)


def _measure(parts: Sequence[str], rounds: int, out: Path) -> None:
    results = json.loads(out.read_text()) if out.exists() else {}
    results["machine"] = {"cores": os.cpu_count(), "jax": jax.__version__}
    for part in parts:
        results[part] = PARTS[part](rounds)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n")
        print(part, json.dumps(results[part], indent=2), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
