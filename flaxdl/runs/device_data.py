"""Training data that lie on the devices: batches then travel as the numbers of their examples."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from flaxdl.data import Dataset, Transform
from flaxdl.data.pipeline import finite_without_weight
from flaxdl.training.distributed.collectives import broadcast_from_first
from flaxdl.training.distributed.mesh import replicated

_SHARE = 1 / 16  # of a device's memory that the data may take


def keep_on_devices(
    dataset: Dataset, transform: Transform, mesh: Mesh
) -> dict[str, jax.Array] | None:
    """Copies all examples to every device, or returns None where that cannot be.

    They must be in memory, be prepared without chance and in one shape, and take at most a
    sixteenth of a device's memory; a CPU's is no other than where they are. All processes take the
    first one's word for it.
    """
    limit = broadcast_from_first(_memory(mesh)) * _SHARE
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
    """Bytes that a device says it has; a CPU says nothing."""
    return (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit", 0)
