"""The training step compiled for the devices of a mesh, under `jit` or under `pmap`.

Either takes the state, laid over all devices, and this process's rows of a batch. `pmap` is the
older way: every device holds the whole state, and the program of one device adds up over all of
them by itself. It is here for who knows it, and for comparison.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxdl.errors import UserError
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.placement import Placement, put_batch, shardings
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps

Parallel = Literal["jit", "pmap"]
Batch = dict[str, np.ndarray]
TrainStep = Callable[[TrainState, Batch], TrainState]


def check_parallel(parallel: Parallel, mesh: Mesh, *, steps_per_call: int = 1) -> None:
    """Checks that the step can be computed in this way on a mesh, and so many at once.

    Raises:
        UserError: if it cannot.
    """
    if parallel == "pmap" and mesh.shape["data"] != mesh.size:
        raise UserError(
            "parallel 'pmap' holds the whole state on every device, so all of them must be on "
            f"mesh.data, got fsdp {mesh.shape['fsdp']} and tensor {mesh.shape['tensor']}; "
            "use parallel 'jit'"
        )
    if parallel == "pmap" and steps_per_call > 1:
        raise UserError(
            f"parallel 'pmap' takes one step at a time, got steps_per_call {steps_per_call}; "
            "use parallel 'jit'"
        )


def compile_train(
    steps: Steps,
    mesh: Mesh,
    parallel: Parallel,
    state: TrainState,
    *,
    data: Mapping[str, jax.Array] | None = None,
    compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> TrainStep:
    """The training step; the state that it is given is used up.

    Under `jit` it also takes several batches at once, as arrays [n, B, ...], and then takes a step
    with each of them, without coming back in between.

    Args:
        steps: the pure functions.
        mesh: the devices.
        parallel: `jit` or `pmap`.
        state: arrays or shapes of the state that it will be given.
        data: under `jit`, the examples whose numbers the batches hold, if they hold no others.
        compiled: applied to each function whose first call compiles.
    """
    if parallel == "pmap":
        return compiled(_under_pmap(steps, mesh))

    def one(state: TrainState, batch: Any, data: Any) -> TrainState:
        return steps.train(state, look_up(data, batch))

    def several(state: TrainState, batches: Any, data: Any) -> TrainState:
        return jax.lax.scan(lambda state, b: (one(state, b, data), None), state, batches)[0]

    places = shardings(state, Placement.of(steps.model, mesh))
    options = {"donate_argnums": 0, "out_shardings": places}
    functions = [compiled(jax.jit(function, **options)) for function in (one, several)]

    def train(state: TrainState, batch: Batch) -> TrainState:
        axis = batch["weight"].ndim - 1  # of the examples
        return functions[axis](state, put_batch(batch, mesh, axis=axis), data)

    return train


def look_up(
    data: Mapping[str, jax.Array] | None, batch: Mapping[str, jax.Array]
) -> Mapping[str, jax.Array]:
    """The batch itself, or the examples that its `index`, int32[B], names in the data."""
    if data is None:
        return batch
    found = {name: jnp.take(x, batch["index"], axis=0, mode="clip") for name, x in data.items()}
    return found | {"weight": batch["weight"] * found.get("weight", 1)}


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
