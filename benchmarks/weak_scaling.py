"""Overhead of flaxdl's loop per step on 1, 2, 4 and 8 devices, with a fixed batch per device.

    python benchmarks/weak_scaling.py

The devices are simulated on the CPU and share its cores, so the results do not predict the speed of
real devices. The overhead is the difference between a step of the training loop (preparing the
batch, placing it on the devices, dispatching the step, logging) and the same compiled step alone,
on a batch that is already on the devices. Both are measured alternately; each number of devices is
a separate process. Writes `benchmarks/results/weak_scaling.json`.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro

RESULTS = Path(__file__).parent / "results" / "weak_scaling.json"
CONFIG = Path(__file__).parent.parent / "configs" / "digits_cnn.py"
EXAMPLES = 128  # per device
ROUNDS, STEPS = 11, 20  # median over rounds of STEPS steps


def measure(*, fsdp: bool) -> dict[str, float]:
    """Returns the milliseconds per step of the step alone, and of the overhead of the loop."""
    import jax
    import numpy as np

    from flaxdl.config_files import load_config
    from flaxdl.runs.setup import set_up
    from flaxdl.training.distributed.mesh import MeshShape
    from flaxdl.training.distributed.parallel import compile_train
    from flaxdl.training.distributed.placement import create_on, put_batch, shardings

    count = jax.device_count()
    mesh = MeshShape(fsdp=count if fsdp else 1)
    setup = set_up(replace(load_config(CONFIG), batch_size=EXAMPLES * count, mesh=mesh))
    state = create_on(setup.placement, setup.create_state)
    train = compile_train(setup.steps, setup.mesh, "jit", state)
    places = shardings(state, setup.placement)
    train_alone = jax.jit(setup.steps.train, donate_argnums=0, out_shardings=places)
    alone, within = [], []
    with closing(setup.training_batches()) as batches:
        placed = jax.device_put(put_batch(next(batches), setup.mesh))
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            for _ in range(STEPS):
                state = jax.block_until_ready(train_alone(state, placed))
            between = time.perf_counter()
            for _ in range(STEPS):
                state = jax.block_until_ready(train(state, next(batches)))
            state.sums.means()  # as for a log line of metrics
            end = time.perf_counter()
            alone.append((between - start) / STEPS * 1e3)
            within.append((end - between) / STEPS * 1e3)
    del alone[0], within[0]  # the first round compiles
    ours = np.subtract(within, alone)
    return {
        "step_ms": round(statistics.median(alone), 2),
        "ours_ms": round(statistics.median(ours), 2),
        "ours_ms_quartiles": [round(q, 2) for q in np.percentile(ours, (25, 75))],
        "ours_share": round(statistics.median(ours / np.array(within)), 4),
    }


def main(devices: int | None = None, fsdp: bool = False) -> None:
    """Measure all numbers of devices, or one.

    Args:
        devices: Number of devices to measure; the result is only printed. None measures all.
        fsdp: Shard the state across the devices as well.
    """
    if devices is not None:
        print(json.dumps(measure(fsdp=fsdp)))
        return
    results: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in ("flaxdl", "jax", "numpy")},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "examples_per_device": EXAMPLES,
    }
    for count in (1, 2, 4, 8):
        for split in (False, True) if count > 1 else (False,):
            flags = ["--devices", str(count), *(["--fsdp"] if split else [])]
            simulated = f"--xla_force_host_platform_device_count={count}"
            done = subprocess.run(
                [sys.executable, __file__, *flags],
                env=os.environ | {"XLA_FLAGS": simulated, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                check=True,
            )
            name = f"{'fsdp' if split else 'data'} {count}"
            results[name] = json.loads(done.stdout)
            print(name, results[name], flush=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
