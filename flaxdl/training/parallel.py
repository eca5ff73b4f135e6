"""The training step compiled for the devices of a mesh, under `jit` or under `pmap`.

Either takes the state, laid over all devices, and this process's rows of a batch. `pmap` is the
older way: every device holds the whole state, and the program of one device adds up over all of
them by itself. It is here for who knows it, and for comparison.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxdl.training.sharding import put_batch, replicated, shardings
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps

Parallel = Literal["jit", "pmap"]
Batch = dict[str, np.ndarray]
TrainStep = Callable[[TrainState, Batch], TrainState]


def check_parallel(parallel: Parallel, mesh: Mesh) -> None:
    """Checks that the step can be computed in this way on a mesh.

    Raises:
        ValueError: if it cannot.
    """
    if parallel == "pmap" and mesh.shape["data"] != mesh.size:
        raise ValueError(
            "parallel 'pmap' holds the whole state on every device, so all of them must be on "
            f"mesh.data, got fsdp {mesh.shape['fsdp']} and tensor {mesh.shape['tensor']}; "
            "use parallel 'jit'"
        )


def compile_train(steps: Steps, mesh: Mesh, parallel: Parallel, state: TrainState) -> TrainStep:
    """The training step; the state that it is given is used up.

    Args:
        steps: the pure functions.
        mesh: the devices.
        parallel: `jit` or `pmap`.
        state: arrays or shapes of the state that it will be given.
    """
    if parallel == "pmap":
        return _under_pmap(steps, mesh)
    train = jax.jit(steps.train, donate_argnums=0, out_shardings=shardings(state, mesh))
    return lambda state, batch: train(state, put_batch(batch, mesh))


def _under_pmap(steps: Steps, mesh: Mesh) -> TrainStep:
    # BatchNorm takes its statistics over the axis of this name.
    steps = replace(steps, mesh=None, axis="data")
    train = jax.pmap(
        steps.train, axis_name="data", in_axes=(None, 0), out_axes=None, donate_argnums=0
    )
    devices = np.array(jax.local_devices())
    here = NamedSharding(Mesh(devices, ("data",)), PartitionSpec())

    def step(state: TrainState, batch: Batch) -> TrainState:
        parts = {
            name: array.reshape(len(devices), -1, *array.shape[1:]) for name, array in batch.items()
        }
        return _seen_from(replicated(mesh), train(_seen_from(here, state), parts))

    return step


def _seen_from(sharding: NamedSharding, tree: Any) -> Any:
    """The same arrays, of which every device holds a copy, as arrays of some or all processes."""
    return jax.tree.map(
        lambda x: jax.make_array_from_single_device_arrays(
            x.shape, sharding, [shard.data for shard in x.addressable_shards]
        ),
        tree,
    )
