"""Cost of training steps of large runs on TPU v5e slices, according to the TPU compiler.

    pip install '.[tpu]'; python benchmarks/slices.py

Compiles ResNet-50 for 256 devices and BERT-base for 64; needs no TPU. Writes FLOPs, memory traffic,
memory and collectives per device and step to `benchmarks/results/slices.json`.
`docs/guides/scaling.md` discusses the results.
"""

import importlib.metadata
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from flaxdl.analysis.compiled_step import abstract_batch, compile_step, cost_of
from flaxdl.backend.tpu_compiler import tpu_devices
from flaxdl.models import BertForSequenceClassification, ResNet50
from flaxdl.training import SGD, AdamW, Classification, Steps
from flaxdl.training.distributed.mesh import MeshShape, make_mesh
from flaxdl.training.distributed.placement import Placement, shapes_on

RESULTS = Path(__file__).parent / "results" / "slices.json"


def images(batch_size: int) -> dict[str, Any]:
    """Returns the shapes of a batch of ImageNet images, as bytes."""
    return {"inputs": jax.ShapeDtypeStruct((batch_size, 224, 224, 3), jnp.uint8)}


def texts(batch_size: int) -> dict[str, Any]:
    """Returns the shapes of a batch of texts of 128 tokens."""
    return {
        "inputs": jax.ShapeDtypeStruct((batch_size, 128), jnp.int32),
        "lengths": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }


def as_numbers(pixels: jax.Array) -> jax.Array:
    """Scales bytes to numbers around 0."""
    return pixels.astype(jnp.float32) / 64 - 2


RESNET = {
    "model": ResNet50(num_classes=1000),
    "optimizer": SGD(learning_rate=3.2),
    "normalize": as_numbers,
}
BERT = {
    "model": BertForSequenceClassification(num_classes=2),
    "optimizer": AdamW(learning_rate=1e-4),
}

CASES = {
    "ResNet-50, 32 images a device": ("v5e:16x16", MeshShape(), images(256 * 32), RESNET),
    "ResNet-50, 128 images a device": ("v5e:16x16", MeshShape(), images(256 * 128), RESNET),
    "BERT-base, 32 texts a device": ("v5e:8x8", MeshShape(), texts(64 * 32), BERT),
    "BERT-base, 32 texts a device, 8 devices": ("v5e:2x4", MeshShape(), texts(8 * 32), BERT),
    "BERT-base, 32 texts a device, fsdp 8": ("v5e:2x4", MeshShape(fsdp=8), texts(8 * 32), BERT),
}


def measure(topology: str, shape: MeshShape, batch: dict[str, Any], settings: Any) -> Any:
    """Compiles a training step, and returns its cost per device."""
    mesh = make_mesh(shape, devices=tpu_devices(topology))
    steps = Steps(
        task=Classification(), total_steps=100, precision="bfloat16", mesh=mesh, **settings
    )
    size = batch["inputs"].shape[0]
    batch = batch | {
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((size,), jnp.float32),
    }
    one = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    placement = Placement.for_model(steps.model, mesh)
    state = shapes_on(placement, partial(steps.initial_state, one))
    start = time.perf_counter()
    compiled = compile_step(steps, state, abstract_batch(batch, size, mesh), placement)
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    cost = cost_of(compiled)
    return {
        "devices": mesh.size,
        "batch_size": size,
        "gigaflops": round(cost.flops / 1e9, 1),
        "gigabytes_accessed": round(cost.bytes_accessed / 1e9, 2),
        "state_and_batch_mebibytes": round(memory.argument_size_in_bytes / 2**20, 1),
        "temporary_mebibytes": round(memory.temp_size_in_bytes / 2**20, 1),
        "collectives": {
            kind: {"count": found.count, "mb": round(found.bytes / 1e6, 2)}
            for kind, found in cost.collectives.items()
        },
        "seconds_to_compile": round(seconds),
    }


def main(only: str = "") -> None:
    """Compile the cases and record their costs.

    Args:
        only: Substring of the names of the cases to compile; the results of the others are kept.
    """
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, case in CASES.items():
        if only not in name:
            continue
        versions = {package: importlib.metadata.version(package) for package in ("jax", "libtpu")}
        results[name] = measure(*case) | versions
        print(name, json.dumps(results[name], indent=2), flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
