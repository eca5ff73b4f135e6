"""Training data stored on the devices, so that only example indices are transferred per step."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from flaxdl.data import Dataset, Transform
from flaxdl.data.pipeline import finite_without_weight
from flaxdl.training.distributed.collectives import broadcast_from_first
from flaxdl.training.distributed.mesh import replicated

_MEMORY_FRACTION = 1 / 16  # maximum fraction of a device's memory for the data


def copy_to_devices(
    dataset: Dataset, transform: Transform, mesh: Mesh
) -> dict[str, jax.Array] | None:
    """Copies all examples to every device; returns None if that is not possible.

    The examples must be in memory, have one shape, be prepared without random augmentation, and
    take at most a sixteenth of a device's memory. On CPU, nothing is copied, since the data is
    already in host memory. All processes use the memory limit of the first one.
    """
    limit = broadcast_from_first(_memory(mesh)) * _MEMORY_FRACTION
    is_fixed = dataset.lengths() is None and not transform.draw(np.random.default_rng(0), 1)
    if not limit or not dataset.in_memory or not is_fixed:
        return None
    one = transform.prepare(dataset.gather(np.arange(1)), draws={})
    size = len(dataset) * sum(array.nbytes for array in one.values())
    if size > limit or any(array.dtype.hasobject for array in one.values()):
        return None
    arrays = finite_without_weight(transform.prepare(dataset.arrays(), draws={}))
    return {name: _put(array, replicated(mesh)) for name, array in arrays.items()}


def _put(array: np.ndarray, place: NamedSharding) -> jax.Array:
    array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    return jax.make_array_from_callback(array.shape, place, array.__getitem__)


def _memory(mesh: Mesh) -> int:
    """Returns the memory limit of a device in bytes; 0 on CPU, where none is reported."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", 0)
