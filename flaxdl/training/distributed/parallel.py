"""The training step compiled for the devices of a mesh, under `jit` or `pmap`.

Both take the state on all devices and this process's rows of a batch. `pmap` is the older API:
every device holds a full copy of the state, and the step sums over devices explicitly. It is kept
for comparison, and for users who know it.
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
    """Checks that `parallel` supports the mesh and the number of steps per call.

    Raises:
        UserError: if `pmap` is combined with `fsdp`, `tensor` or several steps per call.
    """
    if parallel == "pmap" and mesh.shape["data"] != mesh.size:
        raise UserError(
            "parallel 'pmap' holds the whole state on every device, so mesh.fsdp and mesh.tensor "
            f"must be 1, got fsdp {mesh.shape['fsdp']} and tensor {mesh.shape['tensor']}; "
            "use parallel 'jit'"
        )
    if parallel == "pmap" and steps_per_call > 1:
        raise UserError(
            f"parallel 'pmap' supports only steps_per_call 1, got {steps_per_call}; "
            "use parallel 'jit'"
        )


def compile_train(
    steps: Steps,
    mesh: Mesh,
    parallel: Parallel,
    state: TrainState,
    *,
    data: Mapping[str, jax.Array] | None = None,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
) -> TrainStep:
    """Returns the compiled training step; it donates its input state.

    Under `jit`, the step also accepts several batches as arrays [n, B, ...] and scans over them,
    one training step per batch, in a single dispatch.

    Args:
        steps: pure step functions of the run.
        mesh: device mesh.
        parallel: `jit` or `pmap`.
        state: training state that will be passed to the step, or its shapes.
        data: under `jit`, examples that batches index into; None if batches contain examples.
        wrap: callable that is applied to each jitted function, for example to time its first call;
            by default, the identity.
    """
    if parallel == "pmap":
        return wrap(_under_pmap(steps, mesh))

    def train_one(state: TrainState, batch: Any, data: Any) -> TrainState:
        return steps.train(state, gather_examples(data, batch))

    def train_several(state: TrainState, batches: Any, data: Any) -> TrainState:
        return jax.lax.scan(lambda state, b: (train_one(state, b, data), None), state, batches)[0]

    places = shardings(state, Placement.for_model(steps.model, mesh))
    options = {"donate_argnums": 0, "out_shardings": places}
    functions = [wrap(jax.jit(function, **options)) for function in (train_one, train_several)]

    def train(state: TrainState, batch: Batch) -> TrainState:
        axis = batch["weight"].ndim - 1  # axis of the examples
        return functions[axis](state, put_batch(batch, mesh, axis=axis), data)

    return train


def gather_examples(
    data: Mapping[str, jax.Array] | None, batch: Mapping[str, jax.Array]
) -> Mapping[str, jax.Array]:
    """Returns the examples of `data` at the batch's `index`, int32[B], or the batch without `data`.

    Weights in the batch and in `data` are multiplied.
    """
    if data is None:
        return batch
    found = {name: jnp.take(x, batch["index"], axis=0, mode="clip") for name, x in data.items()}
    return found | {"weight": batch["weight"] * found.get("weight", 1)}


def _under_pmap(steps: Steps, mesh: Mesh) -> TrainStep:
    # BatchNorm computes its statistics over the axis of this name.
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
        return _as_replicated(replicated(mesh), train(_as_replicated(here, state), parts))

    return step


def _as_replicated(sharding: NamedSharding, tree: Any) -> Any:
    """Returns replicated arrays with `sharding`, a replicated one over local or all devices."""
    return jax.tree.map(
        lambda x: jax.make_array_from_single_device_arrays(
            x.shape, sharding, [shard.data for shard in x.addressable_shards]
        ),
        tree,
    )
