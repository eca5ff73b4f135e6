"""The mesh of devices that a run is computed on.

| axis     | what is split over it                                                               |
|----------|-------------------------------------------------------------------------------------|
| `data`   | the examples of a batch                                                             |
| `fsdp`   | the examples too, and every large array of the state, which is gathered when used   |
| `tensor` | pairs of layers: the outputs of the first and the inputs of the second              |

`fsdp` is what DeepSpeed calls ZeRO-3 (Rajbhandari et al., https://arxiv.org/abs/1910.02054),
`tensor` is Megatron's parallelism (Shoeybi et al., https://arxiv.org/abs/1909.08053).
`flaxdl.training.distributed.placement` decides which arrays are split over which axis.
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
"""The mesh axes over which the examples of a batch are split."""


@dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How the devices are arranged; it changes how a run is computed, not what it computes."""

    data: int | None = None
    """Groups of devices that split a batch and hold the same state; None: as many as there are."""
    fsdp: int = 1
    """Devices in a group that split the state among them, and the group's examples."""
    tensor: int = 1
    """Devices that split the layers of a transformer, or a large classifier, among them."""

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UserError(f"mesh.{name} must be at least 1, got {size}")

    def fitted_to(self, count: int) -> "MeshShape":
        """The same arrangement on another number of devices.

        `fsdp` and `tensor` become their greatest common divisors with that number, so that every
        array that was split still can be; `data` takes the rest.
        """
        tensor = math.gcd(self.tensor, count)
        return MeshShape(fsdp=math.gcd(self.fsdp, count // tensor), tensor=tensor)


def make_mesh(shape: MeshShape = MeshShape(), *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp` and `tensor`, over the devices of all processes.

    Raises:
        UserError: if the shape does not take all devices.
    """
    devices = jax.devices() if devices is None else devices
    inner = shape.fsdp * shape.tensor
    data = shape.data or max(len(devices) // inner, 1)
    if data * inner != len(devices):
        sizes = f"data {shape.data or 'any'}, fsdp {shape.fsdp}, tensor {shape.tensor}"
        raise UserError(
            f"the mesh must take all {len(devices)} devices, got {sizes}, which "
            f"{'takes' if shape.data else 'takes a multiple of'} "
            f"{(shape.data or 1) * inner}"
        )
    return jax.make_mesh(
        (data, shape.fsdp, shape.tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_example(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """An axis, the first unless told otherwise, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh, *, accumulate_steps: int = 1) -> None:
    """Checks that every device gets the same number of examples, in each part of a batch.

    Raises:
        UserError: naming both numbers and the nearest batch sizes that work.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = devices * accumulate_steps
    if batch_size % unit:
        below = batch_size - batch_size % unit
        near = f"{below} or {below + unit}" if below else f"{unit}"
        times = f" times accumulate_steps = {accumulate_steps}" if accumulate_steps > 1 else ""
        raise UserError(
            f"batch_size must be a multiple of the {devices} devices that share it{times}, "
            f"got {batch_size}; use {near}"
        )


def process_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Which rows of every batch the devices of this process need, int[n] in order."""
    places = split_by_example(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))
