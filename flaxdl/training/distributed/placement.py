"""Placement of arrays on the mesh: how the state and the batches are split over the devices."""

import fnmatch
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxdl.training.distributed.mesh import process_rows, split_by_example
from flaxdl.weights.names import pytorch_key

_COPIED_AT_ONCE = 100_000  # bytes, which JAX copies in the thread that asks for it
_SMALLEST_SHARDED = 4096  # elements; gathering less costs more than it saves

# PyTorch name → the axis, in PyTorch's layout, that `tensor` splits: 0 outputs, 1 inputs. Between
# the two layers of a pair nothing is exchanged, behind the second one sum.
_TENSOR_AXES = {
    "*.W_[qkv].*": 0,
    "*.W_o.weight": 1,
    "*.out_proj.weight": 1,
    "*.attention.self.*": 0,
    "*.attention.output.dense.weight": 1,
    "*.ff.0.*": 0,
    "*.ff.2.weight": 1,
    "*.linear1.*": 0,
    "*.linear2.weight": 1,
    "*.intermediate.dense.*": 0,
    "*.output.dense.weight": 1,
    "*embedding.weight": 0,
    "*embeddings.weight": 0,
    "classifier.[01].*": 0,  # of SimpleCNN, AlexNet and VGG
    "classifier.[34].weight": 1,
}


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The place of every leaf of a tree, by its path and its shape.

    What belongs to a parameter (its running means in the optimizer's state) has its path behind
    that of the container, and so lies where the parameter lies.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(path, leaf.shape, mesh)), tree
    )


def gathered(params: Any, mesh: Mesh | None) -> Any:
    """Parameters as layers use them: whole, but for what `tensor` splits.

    Their gradients are summed over the devices that share them, and split again. Whether what was
    gathered is kept for the backward pass or gathered anew is left to the compiler: told to gather
    anew, by `jax.checkpoint`, TPU's kept so much else that BERT-base took more memory, not less.
    """
    if mesh is None or mesh.shape["data"] == mesh.size:
        return params

    def gather(path: Any, leaf: Any) -> Any:
        stored = _spec(path, leaf.shape, mesh)
        used = [None if axis == "fsdp" else axis for axis in stored]
        places = (NamedSharding(mesh, PartitionSpec(*used)), NamedSharding(mesh, stored))
        return _constrained(leaf, *places)

    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _constrained(x: jax.Array, forward: NamedSharding, backward: NamedSharding) -> jax.Array:
    """Lays x over the devices in one way, and its gradient in another."""
    return jax.lax.with_sharding_constraint(x, forward)


_constrained.defvjp(
    lambda x, forward, backward: (_constrained(x, forward, backward), None),
    lambda forward, backward, _, gradient: (jax.lax.with_sharding_constraint(gradient, backward),),
)


def _spec(path: Any, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How an array of the state is split, given its path in the tree."""
    names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
    axes: list[str | None] = [None] * len(shape)
    split = _tensor_axis(names) if names else None
    if split is not None and shape[split] % mesh.shape["tensor"] == 0:
        axes[split] = "tensor"
    free = [i for i, n in enumerate(shape) if axes[i] is None and n % mesh.shape["fsdp"] == 0]
    if free and math.prod(shape) >= _SMALLEST_SHARDED:
        axes[max(free, key=lambda i: shape[i])] = "fsdp"
    axes = [axis if axis and mesh.shape[axis] > 1 else None for axis in axes]
    return PartitionSpec(*axes) if any(axes) else PartitionSpec()


def _tensor_axis(names: tuple[str, ...]) -> int | None:
    """The axis of a parameter that `tensor` splits, if any."""
    key = pytorch_key(names)
    for pattern, axis in _TENSOR_AXES.items():
        if fnmatch.fnmatchcase(key, pattern):
            return -1 - axis if names[-1] == "kernel" else axis  # [I, O] here, [O, I] there
    return None


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, *, axis: int = 0) -> dict[str, Any]:
    """The rows of a batch that `process_rows` names as part of the global arrays.

    On a single CPU device small arrays stay as they are.

    Args:
        batch: arrays with this process's examples along an axis.
        mesh: the devices.
        axis: 0, or 1 where the arrays are those of several batches, one behind the other.
    """
    if mesh.size == 1 and mesh.devices.flat[0].platform == "cpu":
        return {name: _at_hand(array) for name, array in batch.items()}
    sharding = split_by_example(mesh, axis)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = process_rows(count, mesh)  # of the batch, split into one for each group of devices

    def place(array: np.ndarray) -> jax.Array:
        size = array.shape[axis] // len(parts)

        def rows_at(index: Any) -> np.ndarray:
            start = int(np.searchsorted(parts, (index[axis].start or 0) // size)) * size
            return array[(slice(None),) * axis + (slice(start, start + size),)]

        shape = (*array.shape[:axis], size * count, *array.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, rows_at)

    return {name: place(array) for name, array in batch.items()}


def _at_hand(array: np.ndarray) -> Any:
    """What a function that is compiled for a single CPU device computes with at once.

    A small array it takes as it is, in less time than `device_put` needs. A large one JAX copies
    in another thread, and computes there as well if the copy is not ready, which
    `compute_in_calling_thread` avoids.
    """
    if array.nbytes <= _COPIED_AT_ONCE:
        return array
    return jax.block_until_ready(jax.device_put(array))


def create_on(mesh: Mesh, create: Callable[..., Any], *arguments: Any) -> Any:
    """What a pure function makes of its arguments, born in its places on the devices."""
    places = shardings(jax.eval_shape(create, *arguments), mesh)
    # It runs once: LLVM spends twice as long on drawing the parameters at level 3, for nothing.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 2} if on_cpu else None
    return jax.jit(create, out_shardings=places, compiler_options=options)(*arguments)


def put_on(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every process has, in their places on the devices."""
    return jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, np.asarray(x).__getitem__),
        tree,
        shardings(tree, mesh),
    )


def shapes_on(mesh: Mesh, create: Callable[[], Any]) -> Any:
    """Shapes, dtypes and shardings of what `create_on` would make, without making it."""
    shapes = jax.eval_shape(create)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        shardings(shapes, mesh),
    )
