"""Placement of arrays on the mesh: how the state and the batches are split over the devices.

A layer or model declares what `tensor` splits as `tensor_axes`: `fnmatch` patterns over PyTorch's
parameter names → the axis, in PyTorch's layout, that is split: 0 the outputs, 1 the inputs. The
layers come in pairs: the outputs of the first are split, and the inputs of the second, so that
nothing is exchanged between the two, and one sum after the second:

    class Mlp(nn.Module):
        tensor_axes = {"up.*": 0, "down.weight": 1}

`fsdp` needs no declaration: it takes the largest of the other axes that divides.
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
from flaxdl.training.distributed.mesh import process_rows, split_by_example
from flaxdl.training.state import TrainState
from flaxdl.weights.names import matching, pytorch_key

_COPIED_AT_ONCE = 100_000  # bytes, which JAX copies in the thread that asks for it
_SMALLEST_SHARDED = 4096  # elements; gathering less costs more than it saves


@dataclass(frozen=True)
class Placement:
    """Placement of a run's state: the devices, and what `tensor` splits of the model."""

    mesh: Mesh
    tensor_axes: Mapping[str, int] = field(default_factory=dict)
    """Pattern over PyTorch's parameter names → axis in PyTorch's layout; the first match counts."""

    @classmethod
    def of(cls, model: nn.Module, mesh: Mesh) -> Self:
        """The placement of a model's state, from the `tensor_axes` that the model declares.

        Raises:
            UserError: if they are no patterns with axes 0 or 1.
        """
        axes = getattr(model, "tensor_axes", {})
        if not isinstance(axes, Mapping) or not all(
            isinstance(pattern, str) and axis in (0, 1) for pattern, axis in axes.items()
        ):
            raise UserError(
                f"{type(model).__name__}.tensor_axes must map patterns over parameter names to 0 "
                f"for the outputs or 1 for the inputs, got {axes!r}"
            )
        return cls(mesh, axes)

    def check(self, params: Mapping[str, Any]) -> None:
        """Checks the declaration against the parameters, if `tensor` splits any.

        Raises:
            UserError: if a pattern matches no parameter, or one without the axis to split.
        """
        if self.mesh.shape["tensor"] == 1:
            return
        leaves: dict[Any, Any] = flatten_dict(dict(params))
        shapes = {pytorch_key(path): leaf.shape for path, leaf in leaves.items()}
        for pattern, axis in self.tensor_axes.items():
            for key in sorted(matching(shapes, [pattern], field="model.tensor_axes")):
                if axis >= len(shapes[key]):
                    raise UserError(
                        f"model.tensor_axes: {pattern!r} must name an axis of {key}, got {axis} "
                        f"for {len(shapes[key])} axes"
                    )

    def spec(self, path: Any, shape: tuple[int, ...]) -> PartitionSpec:
        """How an array of the state is split, from its path in the tree and its shape."""
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        axes: list[str | None] = [None] * len(shape)
        split = self._tensor_axis(names) if names else None
        if split is not None and shape[split] % self.mesh.shape["tensor"] == 0:
            axes[split] = "tensor"
        fsdp = self.mesh.shape["fsdp"]
        free = [i for i, n in enumerate(shape) if axes[i] is None and n % fsdp == 0]
        if free and math.prod(shape) >= _SMALLEST_SHARDED:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
        axes = [axis if axis and self.mesh.shape[axis] > 1 else None for axis in axes]
        return PartitionSpec(*axes) if any(axes) else PartitionSpec()

    def _tensor_axis(self, names: tuple[str, ...]) -> int | None:
        """The axis of a parameter that `tensor` splits, if any."""
        key = pytorch_key(names)
        for pattern, axis in self.tensor_axes.items():
            if fnmatch.fnmatchcase(key, pattern):
                return -1 - axis if names[-1] == "kernel" else axis  # [I, O] here, [O, I] there
        return None


def shardings(tree: Any, placement: Placement) -> Any:
    """The sharding of every leaf of a tree, from its path and its shape.

    The optimizer's running means have the paths of their parameters within the tree of means, and
    so they are stored where their parameters are.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(placement.mesh, placement.spec(path, leaf.shape)), tree
    )


def gathered(params: Any, placement: Placement) -> Any:
    """Parameters as layers use them: whole, except for what `tensor` splits.

    Their gradients are summed over the devices that share them, and split again. Whether what was
    gathered is kept for the backward pass or gathered again is left to the compiler: told to gather
    again, by `jax.checkpoint`, TPU's kept so much else that BERT-base took more memory, not less.
    """
    mesh = placement.mesh
    if mesh.shape["data"] == mesh.size:
        return params

    def gather(path: Any, leaf: Any) -> Any:
        stored = placement.spec(path, leaf.shape)
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


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, *, axis: int = 0) -> dict[str, Any]:
    """The rows of a batch that `process_rows` names as part of the global arrays.

    On a single CPU device small arrays stay as they are.

    Args:
        batch: arrays with this process's examples along an axis.
        mesh: the devices.
        axis: 0, or 1 where the arrays are those of several batches, one after the other.
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


def put_for_inference(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """A batch that every process has whole, for functions that use parameters where they are.

    It is split over `data` alone: devices that share the state compute with the same examples, each
    with its part of the parameters. With a part of the examples each would need all parameters.

    Args:
        batch: arrays [B, ...], where B is a multiple of the mesh's `data` axis.
        mesh: the devices.
    """
    if mesh.size == 1:
        return put_batch(dict(batch), mesh)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in batch.items()
    }


def in_turn(results: Any, mesh: Mesh) -> Any:
    """Waits for results on CPUs, where steps that overlap lose more than they gain.

    The CPU devices of one process share its threads: with two steps in flight, the devices of one
    can hold all threads while they wait for the others of their kind. And a step whose state is not
    there yet is left to another thread, which `computing_in_calling_thread` avoids.
    """
    if mesh.devices.flat[0].platform == "cpu":
        # All results of one device are there together, and waiting for one of them takes less time.
        is_state_of_one = isinstance(results, TrainState) and mesh.size == 1
        jax.block_until_ready(results.step if is_state_of_one else results)
    return results


def _at_hand(array: np.ndarray) -> Any:
    """What a function that is compiled for a single CPU device computes with at once.

    A small array it takes as it is, in less time than `device_put` needs. A large one JAX copies
    in another thread, and computes there as well if the copy is not ready, which
    `computing_in_calling_thread` avoids.
    """
    if array.nbytes <= _COPIED_AT_ONCE:
        return array
    return jax.block_until_ready(jax.device_put(array))


def create_on(placement: Placement, create: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a pure function, computed where it is to be stored."""
    places = shardings(jax.eval_shape(create, *arguments), placement)
    # It runs once: LLVM spends twice as long on drawing the parameters at level 3, for nothing.
    on_cpu = placement.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 2} if on_cpu else None
    return jax.jit(create, out_shardings=places, compiler_options=options)(*arguments)


def shapes_on(placement: Placement, create: Callable[[], Any]) -> Any:
    """Shapes, dtypes and shardings of what `create_on` would make, without making it."""
    shapes = jax.eval_shape(create)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        shardings(shapes, placement),
    )


def put_like(like: Any, tree: Any) -> Any:
    """Arrays that every process has, stored where those of another tree are."""

    def put(array: jax.Array, x: Any) -> jax.Array:
        if x is array:
            return array
        return jax.make_array_from_callback(x.shape, array.sharding, np.asarray(x).__getitem__)

    return jax.tree.map(put, like, tree)
