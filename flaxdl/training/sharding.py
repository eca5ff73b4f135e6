"""Where arrays live: the mesh of devices, and how batches and state are laid over it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")
"""The mesh axes over which the examples of a batch are split."""


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with axes `data`, `fsdp` and `tensor`; all devices are on `data`."""
    devices = jax.devices() if devices is None else devices
    return Mesh(
        np.array(devices).reshape(len(devices), 1, 1),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_example(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Checks that every device gets the same number of examples.

    Raises:
        ValueError: naming both numbers and the nearest batch sizes that work.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % devices:
        below = batch_size - batch_size % devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise ValueError(
            f"batch_size must be a multiple of the {devices} devices that share it, "
            f"got {batch_size}; use {near}"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """This process's share of a batch as part of the global arrays, split by example."""
    sharding = split_by_example(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def create_on(mesh: Mesh, create: Callable[[], Any]) -> Any:
    """What a pure function makes, born on the devices of the mesh."""
    return jax.jit(create, out_shardings=replicated(mesh))()


def shapes_on(mesh: Mesh, create: Callable[[], Any]) -> Any:
    """Shapes, dtypes and shardings of what `create_on` would make, without making it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)),
        jax.eval_shape(create),
    )
