"""The device mesh of a run.

| axis     | sharded across it                                                                   |
|----------|-------------------------------------------------------------------------------------|
| `data`   | the examples of a batch                                                             |
| `fsdp`   | the examples, and every large array of the state (gathered when used)               |
| `tensor` | pairs of layers: the outputs of the first and the inputs of the second              |

`fsdp` is DeepSpeed's ZeRO-3 (Rajbhandari et al., https://arxiv.org/abs/1910.02054), `tensor` is
Megatron's tensor parallelism (Shoeybi et al., https://arxiv.org/abs/1909.08053).
`flaxdl.training.distributed.placement` determines which arrays are sharded across which axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxdl.errors import UserError

BATCH_AXES = ("data", "fsdp")
"""Mesh axes across which the examples of a batch are sharded."""


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Shape of the device mesh; it does not change the results of a run."""

    data: int | None = None
    """Number of device groups that split a batch (data parallelism); by default, the maximum."""
    fsdp: int = 1
    """Number of devices per group that shard the state and the group's examples (FSDP, ZeRO-3)."""
    tensor: int = 1
    """Number of devices that transformer layers and large classifiers are sharded across
    (tensor parallelism)."""

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UserError(f"mesh.{name} must be at least 1, got {size}")

    def fit_to(self, count: int) -> "MeshShape":
        """Returns the nearest shape for another number of devices.

        `tensor` becomes its greatest common divisor with `count`, and `fsdp` that with the quotient
        of both, so that sharded arrays remain divisible. `data` uses all remaining devices.
        """
        tensor = math.gcd(self.tensor, count)
        return MeshShape(fsdp=math.gcd(self.fsdp, count // tensor), tensor=tensor)


def make_mesh(shape: MeshShape = MeshShape(), *, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with the axes `data`, `fsdp` and `tensor`, by default of all devices.

    Raises:
        UserError: if the shape does not use all devices.
    """
    devices = jax.devices() if devices is None else devices
    inner = shape.fsdp * shape.tensor
    data = shape.data or max(len(devices) // inner, 1)
    if data * inner != len(devices):
        sizes = f"data {shape.data or 'any'}, fsdp {shape.fsdp}, tensor {shape.tensor}"
        raise UserError(
            f"the mesh must use all {len(devices)} devices, got {sizes}, which "
            f"{'uses' if shape.data else 'uses a multiple of'} "
            f"{(shape.data or 1) * inner}"
        )
    return jax.make_mesh(
        (data, shape.fsdp, shape.tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns a fully replicated sharding: every device holds a full copy of the array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Returns the sharding of a batch across devices; `axis` is the axis of the examples."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh, *, accumulate_steps: int = 1) -> None:
    """Checks that every device gets the same number of examples in each micro-batch.

    Raises:
        UserError: if the batch size is not divisible; the message contains the nearest valid sizes.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = devices * accumulate_steps
    if batch_size % unit:
        below = batch_size - batch_size % unit
        near = f"{below} or {below + unit}" if below else f"{unit}"
        times = f" times accumulate_steps = {accumulate_steps}" if accumulate_steps > 1 else ""
        raise UserError(
            f"batch_size must be a multiple of the {devices} devices that split it{times}, "
            f"got {batch_size}; use {near}"
        )


def process_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns the rows of a global batch needed by this process's devices, int[n], in order."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))
