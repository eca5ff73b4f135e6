"""Whether a run comes to the same on any arrangement of devices: samples for the tests, or all.

    python tests/helpers/devices.py 8

runs all cases of 2, 4 or 8 devices, which takes long, and prints a table: for each model and mesh
the largest difference from one device, of the gradients of one step in float32 (by the largest
gradient), and of the parameters after fifty steps in float64. Under `jit` dropout is on, and drop
path in the Transformer, since their masks do not depend on the mesh; `pmap` draws other masks, and
is compared without. The table is recorded in benchmarks/results/devices.md.
"""

import os
import sys
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import ClassVar

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import numpy as np

from flaxdl.layers import BatchNorm, Conv, Dropout, Linear, adaptive_avg_pool
from flaxdl.models import SimpleRNN, TransformerClassifier
from flaxdl.training import SGD, AdamW, Classification, Cosine, Steps
from flaxdl.training.distributed.mesh import MeshShape, make_mesh
from flaxdl.training.distributed.parallel import compile_train
from flaxdl.training.distributed.placement import Placement, create_on, put_like

BATCH_SIZE = 16
STEPS = 50


class NormalizedCnn(nn.Module):
    """Convolution, BatchNorm, dropout, and a linear layer large enough to be split."""

    dropout: float = 0.3

    tensor_axes: ClassVar[dict[str, int]] = {"classifier.1.*": 0, "classifier.4.weight": 1}

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(BatchNorm(name="bn1")(Conv(64, 3, padding=1, name="conv1")(x), train))
        x = nn.relu(BatchNorm(name="bn2")(Conv(64, 3, padding=1, name="conv2")(x), train))
        x = adaptive_avg_pool(x, 2).reshape(len(x), -1)  # [B, 256]
        x = nn.relu(Linear(64, name="classifier.1")(x))
        return Linear(4, name="classifier.4")(Dropout(self.dropout, name="dropout")(x, train))


def images(rng):
    return {"inputs": rng.standard_normal((BATCH_SIZE, 6, 6, 3)).astype(np.float32)}


def sequences(rng):
    return {"inputs": rng.standard_normal((BATCH_SIZE, 7, 12)).astype(np.float32)}


def texts(rng):
    return {
        "inputs": rng.integers(1, 64, (BATCH_SIZE, 12)).astype(np.int32),
        "lengths": rng.integers(3, 13, BATCH_SIZE).astype(np.int32),
    }


def transformer(dropout, drop_path_rate=0.0):
    return TransformerClassifier(
        vocab_size=64,
        num_classes=4,
        hidden_size=64,
        num_heads=4,
        num_layers=2,
        feed_forward_size=128,
        max_length=12,
        dropout=dropout,
        drop_path_rate=drop_path_rate,
    )


# A model without dropout and with it, and its data.
MODELS = {
    "CNN": (NormalizedCnn(0.0), NormalizedCnn(), images),
    "LSTM": (
        SimpleRNN(num_classes=4, hidden_size=64, cell="lstm"),
        SimpleRNN(num_classes=4, hidden_size=64, cell="lstm", num_layers=2, dropout=0.3),
        sequences,
    ),
    "Transformer": (transformer(dropout=0.0), transformer(dropout=0.3, drop_path_rate=0.3), texts),
}


@dataclass(frozen=True)
class Case:
    """A model on an arrangement of devices."""

    model: str
    data: int
    fsdp: int
    tensor: int
    parallel: str = "jit"

    @property
    def alone(self):
        """The same on one device, under `jit`."""
        return replace(self, data=1, fsdp=1, tensor=1)


def all_cases(devices):
    """Every way to arrange so many devices."""
    sizes = [size for size in (1, 2, 4, 8) if size <= devices]
    return [
        Case(model, data, fsdp, tensor, parallel)
        for model in MODELS
        for data in sizes
        for fsdp in sizes
        for tensor in sizes
        for parallel in ("jit", "pmap")
        if data * fsdp * tensor == devices and (parallel == "jit" or data == devices)
    ]


def batch_of(case, seed):
    rng = np.random.default_rng(seed)
    batch = MODELS[case.model][2](rng)
    labels = rng.integers(0, 4, BATCH_SIZE).astype(np.int32)
    # Weights that differ from device to device, so that a mean of means would be another mean.
    weight = np.where(np.arange(BATCH_SIZE) % 5 == 3, 0, 1).astype(np.float32)
    return batch | {"label": labels, "weight": weight}


def widened(tree):
    """A tree of NumPy arrays with float64 for float32."""
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def train(case, optimizer, *, count, wide):
    """The parameters before and after so many steps, and the trained state."""
    devices = jax.devices()[: case.data * case.fsdp * case.tensor]
    shape = MeshShape(data=case.data, fsdp=case.fsdp, tensor=case.tensor)
    mesh = make_mesh(shape, devices=devices)
    # All cases under `pmap` are compared with what has no dropout.
    model = MODELS[case.model][0 if case.parallel == "pmap" else 1]
    steps = Steps(
        model=model, task=Classification(), optimizer=optimizer, total_steps=STEPS, mesh=mesh
    )
    first = batch_of(case, 0)
    state = create_on(Placement.for_model(model, mesh), partial(steps.initial_state, first))
    if wide:
        values = (state.params, state.model_state, state.optimizer_state)
        values = put_like(values, widened(jax.device_get(values)))
        state = state.replace(params=values[0], model_state=values[1], optimizer_state=values[2])
    before = jax.device_get(state.params)
    # One device is the reference for both ways.
    parallel = case.parallel if len(devices) > 1 else "jit"
    step = compile_train(steps, mesh, parallel, state)
    for seed in range(count):
        batch = batch_of(case, seed)
        state = jax.block_until_ready(step(state, widened(batch) if wide else batch))
    return before, jax.device_get(state.params), state


@lru_cache
def gradients(case):
    """The gradients of the first step in float32."""
    before, after, _ = train(case, SGD(learning_rate=1.0, momentum=0.0), count=1, wide=False)
    return jax.tree.map(np.subtract, before, after)


@lru_cache
def trained(case):
    """The parameters after fifty steps in float64, with clipping, decay and a schedule."""
    optimizer = AdamW(learning_rate=1e-2, schedule=Cosine(warmup_steps=5), clip_norm=0.5)
    with jax.enable_x64(True):
        return train(case, optimizer, count=STEPS, wide=True)[1]


def largest(tree):
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))


def gradient_difference(case):
    """By the largest gradient."""
    ours, theirs = gradients(case), gradients(case.alone)
    return largest(jax.tree.map(np.subtract, ours, theirs)) / largest(theirs)


def trained_difference(case):
    """Absolute."""
    return largest(jax.tree.map(np.subtract, trained(case), trained(case.alone)))


def main():
    """Prints the table of all cases, and the largest differences."""
    cases = all_cases(jax.device_count())
    print(f"jax {jax.__version__}, {jax.device_count()} CPU devices, {len(cases)} cases\n")
    print("| model | data | fsdp | tensor | | gradients, float32 | 50 steps, float64 |")
    print("|---|---|---|---|---|---|---|")
    worst = np.zeros(2)
    for case in cases:
        found = gradient_difference(case), trained_difference(case)
        worst = np.maximum(worst, found)
        print(
            f"| {case.model} | {case.data} | {case.fsdp} | {case.tensor} | {case.parallel} "
            f"| {found[0]:.1e} | {found[1]:.1e} |",
            flush=True,
        )
    print(f"\nlargest: {worst[0]:.1e} and {worst[1]:.1e}")
    sys.exit(int(worst[0] > 1e-5 or worst[1] > 1e-8))


if __name__ == "__main__":
    main()
