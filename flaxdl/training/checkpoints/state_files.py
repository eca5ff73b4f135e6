"""The arrays of a checkpoint on disk, written and read by Orbax.

The processes of a run write their own shards to a shared folder. Without one, the first process
writes everything and sends it to the others when a checkpoint is restored. The files are the same
in both cases, so a run may continue with another number of processes or another kind of folder.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxdl.training.distributed.collectives import is_first, run_on_first
from flaxdl.training.state import TrainState


class StateFiles:
    """Files in a folder that all processes share; each process writes and reads its own shards.

    All processes must call `save` and `restore` in the same order.
    """

    def __init__(self):
        import orbax.checkpoint as ocp

        self._checkpointer = ocp.StandardCheckpointer()

    def save(self, path: Path, state: TrainState) -> None:
        """Copies a state from the devices, and starts to write it to a new folder."""
        self._checkpointer.save(path, state)

    def wait(self) -> None:
        """Waits until the last state is written, and raises the error if that failed."""
        self._checkpointer.wait_until_finished()

    def restore(self, path: Path, like: dict[str, Any]) -> dict[str, Any]:
        """Reads the fields of a state, with the shapes, dtypes and shardings of `like`."""
        restored: Any = self._checkpointer.restore(path, like)
        return restored

    def stored(self, path: Path) -> dict[str, Any]:
        """Returns a tree with the shape and dtype of each array of a stored state."""
        metadata: Any = self._checkpointer.metadata(path)
        return metadata.item_metadata.tree

    def close(self) -> None:
        """Stops the threads that write."""
        self._checkpointer.close()


class StateFilesOfFirst(StateFiles):
    """Files of the first process only, which gathers the whole state in its memory to save it."""

    def __init__(self):
        import orbax.checkpoint as ocp

        if is_first():
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
            )
            self._checkpointer = ocp.StandardCheckpointer(multiprocessing_options=alone)

    def save(self, path: Path, state: TrainState) -> None:
        """Gathers a state, and starts to write it in the first process.

        If that fails, it raises an error in all processes: the others must not wait for its end.
        """
        arrays = jax.tree.map(_gathered, state)
        run_on_first(lambda: self._checkpointer.save(path, arrays))

    def wait(self) -> None:
        """Waits until the last state is written, in the first process."""
        if is_first():
            super().wait()

    def close(self) -> None:
        """Stops the threads that write."""
        if is_first():
            super().close()

    def restore(self, path: Path, like: dict[str, Any]) -> dict[str, Any]:
        """Reads the fields in the first process, and sends them to the others."""
        from jax.experimental import multihost_utils

        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        read = run_on_first(lambda: self._checkpointer.restore(path, empty))
        arrays = multihost_utils.broadcast_one_to_all(empty if read is None else read)
        return jax.tree.map(
            lambda x, array: jax.make_array_from_callback(
                x.shape, x.sharding, np.asarray(array).__getitem__
            ),
            like,
            arrays,
        )


def _gathered(array: jax.Array) -> np.ndarray:
    """Returns the whole content of an array that may be sharded across processes."""
    from jax.experimental import multihost_utils

    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
