"""Placement of the state and of batches on the device mesh.

A layer or model declares in `tensor_axes` which parameters are sharded across the mesh axis
`tensor`. The keys are `fnmatch` patterns of PyTorch parameter names, the values are the axes to
split in PyTorch's layout, 0 for outputs or 1 for inputs. Layers come in pairs, the first split by
outputs and the second by inputs, so that the devices communicate only once, for a sum after the
second layer:

    class Mlp(nn.Module):
        tensor_axes = {"up.*": 0, "down.weight": 1}

`fsdp` needs no declaration: it splits the largest of the remaining axes whose size it divides.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxdl.errors import UserError
from flaxdl.training.distributed.mesh import batch_sharding, process_rows
from flaxdl.training.state import TrainState
from flaxdl.weights.names import matching, pytorch_key

_SYNC_COPY_BYTES = 100_000  # size up to which JAX copies arrays in the calling thread
_SMALLEST_SHARDED = 4096  # elements; gathering smaller arrays costs more than it saves


@dataclass(frozen=True)
class Placement:
    """Sharding of a run's state: the mesh, and the array axes sharded by `tensor`."""

    mesh: Mesh
    tensor_axes: Mapping[str, int] = field(default_factory=dict)
    """Axis to split in PyTorch's layout, by name pattern; the first matching pattern applies."""

    @classmethod
    def for_model(cls, model: nn.Module, mesh: Mesh) -> Self:
        """Returns the placement of a model's state, according to its `tensor_axes`.

        Raises:
            UserError: if `tensor_axes` does not map patterns to axis 0 or 1.
        """
        axes = getattr(model, "tensor_axes", {})
        if not isinstance(axes, Mapping) or not all(
            isinstance(pattern, str) and axis in (0, 1) for pattern, axis in axes.items()
        ):
            raise UserError(
                f"{type(model).__name__}.tensor_axes must map patterns of parameter names to 0 "
                f"(split outputs) or 1 (split inputs), got {axes!r}"
            )
        return cls(mesh, axes)

    def check(self, params: Mapping[str, Any]) -> None:
        """Checks `tensor_axes` against the parameters, if the mesh axis `tensor` is above 1.

        Raises:
            UserError: if a pattern matches no parameter, or a parameter without the axis.
        """
        if self.mesh.shape["tensor"] == 1:
            return
        leaves: dict[Any, Any] = flatten_dict(dict(params))
        shapes = {pytorch_key(path): leaf.shape for path, leaf in leaves.items()}
        for pattern, axis in self.tensor_axes.items():
            for key in sorted(matching(shapes, [pattern], field="model.tensor_axes")):
                if axis >= len(shapes[key]):
                    raise UserError(
                        f"model.tensor_axes: {pattern!r} must map to an axis of {key}, got {axis} "
                        f"for {len(shapes[key])} axes"
                    )

    def spec(self, path: Any, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns the partition spec of an array of the state, given its path and shape."""
        names: tuple[str, ...] = ()  # of a parameter, without keys such as optax.partition's labels
        for key in path:
            names = (*names, key.key) if isinstance(key, jax.tree_util.DictKey) else ()
        axes: list[str | None] = [None] * len(shape)
        split = self._tensor_axis(names) if names else None
        # Factored moments have fewer axes than their parameter.
        if split is not None and -len(shape) <= split < len(shape):
            axes[split] = "tensor" if shape[split] % self.mesh.shape["tensor"] == 0 else None
        fsdp = self.mesh.shape["fsdp"]
        free = [i for i, n in enumerate(shape) if axes[i] is None and n % fsdp == 0]
        if free and math.prod(shape) >= _SMALLEST_SHARDED:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
        axes = [axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes]
        return PartitionSpec(*axes) if any(axes) else PartitionSpec()

    def _tensor_axis(self, names: tuple[str, ...]) -> int | None:
        """Returns the axis of a parameter that `tensor` splits; None if it splits none."""
        key = pytorch_key(names)
        for pattern, axis in self.tensor_axes.items():
            if fnmatch.fnmatchcase(key, pattern):
                return -1 - axis if names[-1] == "kernel" else axis  # [I, O] here, [O, I] there
        return None


def shardings(tree: Any, placement: Placement) -> Any:
    """Returns the sharding of every leaf of a tree, given its path and shape.

    The optimizer's moments have the paths of their parameters, and therefore the same sharding.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(placement.mesh, placement.spec(path, leaf.shape)), tree
    )


def gather_params(params: Any, placement: Placement) -> Any:
    """Gathers parameters across `fsdp`, so that they are sharded across `tensor` only.

    Their gradients are reduced and sharded across `fsdp` again. The compiler chooses between
    storing the gathered parameters for the backward pass and gathering them again. Forcing the
    latter by `jax.checkpoint` increased the memory use of BERT-base on TPU, since the compiler then
    stored more of other arrays.
    """
    mesh = placement.mesh
    if mesh.shape["data"] == mesh.size:
        return params

    def gather(path: Any, leaf: Any) -> Any:
        stored = placement.spec(path, leaf.shape)
        used = [None if axis == "fsdp" else axis for axis in stored]
        places = (NamedSharding(mesh, PartitionSpec(*used)), NamedSharding(mesh, stored))
        return _with_shardings(leaf, *places)

    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _with_shardings(x: jax.Array, forward: NamedSharding, backward: NamedSharding) -> jax.Array:
    """Constrains the shardings of `x` and of its gradient."""
    return jax.lax.with_sharding_constraint(x, forward)


_with_shardings.defvjp(
    lambda x, forward, backward: (_with_shardings(x, forward, backward), None),
    lambda forward, backward, _, gradient: (jax.lax.with_sharding_constraint(gradient, backward),),
)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, *, axis: int = 0) -> dict[str, Any]:
    """Returns the global arrays of a batch, given the rows of this process (`process_rows`).

    On a single CPU device, small arrays remain NumPy arrays.

    Args:
        batch: arrays with this process's examples along `axis`.
        mesh: device mesh.
        axis: axis of the examples: 0, or 1 if several batches are stacked.
    """
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        return {name: _put_on_cpu(array) for name, array in batch.items()}
    sharding = batch_sharding(mesh, axis)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = process_rows(count, mesh)  # parts of the batch, one for each group of devices

    def place(array: np.ndarray) -> jax.Array:
        size = array.shape[axis] // len(parts)

        def rows_at(index: Any) -> np.ndarray:
            start = int(np.searchsorted(parts, (index[axis].start or 0) // size)) * size
            return array[(slice(None),) * axis + (slice(start, start + size),)]

        shape = (*array.shape[:axis], size * count, *array.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, rows_at)

    return {name: place(array) for name, array in batch.items()}


def put_for_inference(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Returns the global arrays of a batch of which every process holds a full copy.

    The batch is sharded across `data` only, so that inference need not gather parameters: the
    devices of an `fsdp` group process the same examples, each with its own shard of the parameters.

    Args:
        batch: arrays [B, ...], where B is a multiple of the size of the mesh axis `data`.
        mesh: device mesh.
    """
    if mesh.size == 1:
        return put_batch(dict(batch), mesh)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in batch.items()
    }


def block_on_cpu(results: Any, mesh: Mesh) -> Any:
    """Returns the results of a step; on CPU, waits until they are computed.

    On CPU, overlapping steps would be slower and could deadlock. The CPU devices of a process share
    its threads; with two steps in flight, some devices of one step can hold all threads while they
    wait for the other devices of that step. In addition, JAX runs a step whose inputs are not ready
    in another thread, even with `synchronous_dispatch`.
    """
    if mesh.devices.flat[0].platform == "cpu":
        # On one device all results are ready together, and waiting for one array is faster.
        is_state_of_one = isinstance(results, TrainState) and mesh.size == 1
        jax.block_until_ready(results.step if is_state_of_one else results)
    return results


def _put_on_cpu(array: np.ndarray) -> Any:
    """Returns an array that a function on a single CPU device can use without waiting.

    Small arrays are returned unchanged, since this is faster than `device_put`. JAX copies large
    arrays in another thread. If the copy were not ready, it would also run the step there, even
    with `synchronous_dispatch`.
    """
    if array.nbytes <= _SYNC_COPY_BYTES:
        return array
    return jax.block_until_ready(jax.device_put(array))


def create_on(placement: Placement, create: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a pure function and returns its result, computed with its final sharding."""
    places = shardings(jax.eval_shape(create, *arguments), placement)
    # It runs only once. LLVM's level 3 takes twice as long to compile, for no benefit.
    on_cpu = placement.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 2} if on_cpu else None
    return jax.jit(create, out_shardings=places, compiler_options=options)(*arguments)


def shapes_on(placement: Placement, create: Callable[[], Any]) -> Any:
    """Returns the shapes, dtypes and shardings of the result of `create_on`."""
    shapes = jax.eval_shape(create)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        shardings(shapes, placement),
    )


def put_like(like: Any, tree: Any) -> Any:
    """Shards arrays of which every process holds a full copy like the arrays of another tree."""

    def put(array: jax.Array, x: Any) -> jax.Array:
        if x is array:
            return array
        return jax.make_array_from_callback(x.shape, array.sharding, np.asarray(x).__getitem__)

    return jax.tree.map(put, like, tree)
