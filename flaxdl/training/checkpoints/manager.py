"""Checkpoints of the training state, written by Orbax in the background and verified when read.

With several processes, process 0 manages the directory and broadcasts the outcome.
"""

import errno
import itertools
import logging
import os
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxdl.errors import SaveError, UserError
from flaxdl.training.checkpoints.folder import CheckpointFolder, CorruptCheckpoint
from flaxdl.training.checkpoints.state_files import StateFiles, StateFilesOfFirst
from flaxdl.training.distributed.collectives import broadcast_from_first, is_first, run_on_first
from flaxdl.training.state import TrainState

_LOGGER = logging.getLogger(__name__)
_BARRIER_TIMEOUT_MS = 1_200_000  # the same as for Orbax's own barriers


class Checkpoints:
    """The checkpoints of a run: the newest few, and the best one.

    Each save leaks about 20 kB of memory, because Orbax collects TensorStore's metrics in every
    save and has no option to disable this.

    Args:
        directory: folder for the checkpoints, with a subfolder for each step.
        keep: number of newest checkpoints to keep.
        best_step: callable that returns the best step so far, or None; its checkpoint is also kept.
        last_line: callable that returns the step of the newest line of metrics, or None.
        is_shared: False if the processes of the run do not share the directory; the first one then
            writes and reads all files.

    Raises:
        UserError: if checkpoints cannot be read back from the directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        best_step: Callable[[], int | None] = lambda: None,
        last_line: Callable[[], int | None] = lambda: None,
        is_shared: bool = True,
    ):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").addFilter(_is_not_orbax_error)
        self._folder = CheckpointFolder(directory)
        self._keep = keep
        self._best_step = best_step
        self._last_line = last_line
        self._serialize = ocp.tree.serialize_tree
        self._barrier: Any = ocp.multihost.get_barrier_sync_fn()
        self._barriers = itertools.count()
        self._files = StateFiles() if is_shared else StateFilesOfFirst()
        self._has_files = is_shared or is_first()
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._failure: SaveError | None = None

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, oldest first.

        All processes must call it; they get the list of process 0, since a folder on a shared file
        system may become visible to processes at different times.
        """
        return broadcast_from_first(self._folder.steps())

    def recover(self) -> int:
        """Prepares to resume; returns the step of the newest undamaged checkpoint, or 0.

        Partially written checkpoints are deleted; damaged ones are logged and moved to a subfolder.

        Raises:
            CorruptCheckpoint: if all checkpoints are damaged; nothing is changed.
        """
        return _run_on_first(self._folder.recover)

    def save(self, state: TrainState, *, also_keep: int | None = None) -> None:
        """Copies the state from the devices, then writes it in the background.

        If writing fails, now or later, a warning is logged, and the run continues with its existing
        checkpoints.

        Args:
            state: training state to save.
            also_keep: step whose checkpoint must not be removed, in addition to the usual ones.
        """
        step = int(state.step)
        self.join()
        steps = self.steps()
        if step in steps:
            return
        kept = {*sorted([*steps, step])[-self._keep :], step, self._best_step(), also_keep}
        self._failure = None
        try:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            _run_on_first(lambda: self._folder.prepare(step, size))
            self._files.save(self._folder.partial_path(step), state)
        except Exception as error:
            self._record_failure(step, error)
        else:
            self._saving = self._background.submit(self._finish, step, kept, self._last_line())

    def last_line(self, step: int) -> int | None:
        """Returns the step of the newest line of metrics at the time of saving; None if unknown."""
        return _run_on_first(lambda: self._folder.last_line(step))

    def restore(self, like: TrainState, step: int) -> TrainState:
        """Returns the state of a step, with the shapes and shardings of `like`.

        Raises:
            CorruptCheckpoint: if files of the checkpoint are changed or missing, or contain another
                step.
            UserError: if there is no such checkpoint, or if its state has another structure.
        """
        _run_on_first(lambda: self._folder.check(step))
        try:
            names = self.check(like, step)
            # Without the fields that later versions added, which are empty in `like`.
            fields = {name: getattr(like, name) for name in names}
            state = like.replace(**self._files.restore(self._folder.path_of(step), fields))
        except Exception as error:
            if self._has_files and not self._folder.path_of(step).is_dir():
                # The run, still training in another process, removed the checkpoint during reading.
                message = f"the checkpoint of step {step} no longer exists"
                raise CorruptCheckpoint(message) from error
            raise
        if int(state.step) != step:  # manifests of earlier versions do not record the step
            raise CorruptCheckpoint(
                f"the checkpoint {self._folder.path_of(step)} contains the state of step "
                f"{int(state.step)}; rename or remove it"
            )
        return state

    def check(self, like: TrainState, step: int) -> Collection[str]:
        """Checks that the checkpoint of a step has the structure of `like`.

        Returns:
            Names of the fields of the stored state.

        Raises:
            UserError: if there is no such checkpoint, or if its arrays differ; the message names
                some of them.
        """
        if step not in self.steps():
            raise UserError(
                f"{self._folder.path} has no checkpoint of step {step}, only {self.steps()}"
            )
        stored: Any = broadcast_from_first(run_on_first(lambda: self._stored(step)))
        fields, theirs = stored
        ours = _shapes(self._serialize(like, keep_empty_nodes=True))
        differing = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        if differing:
            names = ", ".join(differing[:3])
            raise UserError(
                f"the checkpoint of step {step} in {self._folder.path} is from another model, "
                f"optimizer, `freeze` or `ema` setting: {len(differing)} of its arrays differ, "
                f"such as {names}"
            )
        return fields

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps.

        Raises:
            OSError: if a checkpoint cannot be removed.
        """
        self.join()
        later = [other for other in self.steps() if other > step]
        _run_on_first(lambda: [self._folder.remove(other) for other in later])

    def join(self) -> None:
        """Waits for the save in the background; a failure is logged, not raised."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            SaveError: if the last save failed.
        """
        self.join()
        of_first = broadcast_from_first(None if self._failure is None else str(self._failure))
        if self._failure is not None:
            raise self._failure
        if of_first is not None:
            raise SaveError(of_first)

    def close(self) -> None:
        """Waits for the save in the background and stops its threads."""
        self.join()
        self._background.shutdown()
        self._files.close()

    def _stored(self, step: int) -> tuple[list[str], dict[str, list[int]]]:
        """Returns the fields of the stored state of a step, and the shapes of its arrays."""
        stored = self._files.stored(self._folder.path_of(step))
        return list(stored), _shapes(stored)

    def _finish(self, step: int, kept: set[int | None], last_line: int | None) -> None:
        """Waits for Orbax, completes the checkpoint, and removes old ones."""
        try:
            try:
                self._files.wait()
                if is_first():
                    self._folder.complete(step, last_line)
                    for other in self._folder.steps():
                        if other not in kept:
                            self._folder.remove(other)
            finally:
                key = f"checkpoint {next(self._barriers)} complete"
                self._barrier(key=key, timeout_ms=_BARRIER_TIMEOUT_MS)
            if self._has_files and step not in self._folder.steps():
                raise OSError("process 0 could not complete it")
        except Exception as error:
            self._record_failure(step, error)

    def _record_failure(self, step: int, error: Exception) -> None:
        if is_first():
            self._folder.remove_partial()
        what = f"the checkpoint of step {step} cannot be written: {_reason(error)}"
        self._failure = SaveError(what)
        self._failure.__cause__ = error
        newest = max(self._folder.steps(), default="none")
        _LOGGER.warning("%s (step of the newest checkpoint: %s)", what, newest)


def _run_on_first(call: Callable[[], Any]) -> Any:
    """Calls a function in process 0 and returns its JSON-compatible result in all processes.

    Raises:
        CorruptCheckpoint: in all processes, if the function raises it.
        OSError: in all processes, if the function raises it.
    """
    value, damage, failure = None, None, None
    if is_first():
        try:
            value = call()
        except CorruptCheckpoint as error:
            damage = str(error)
        except OSError as error:
            failure = [error.errno or errno.EIO, error.strerror or str(error)]
    value, damage, failure = broadcast_from_first([value, damage, failure])
    if damage is not None:
        raise CorruptCheckpoint(damage)
    if failure is not None:
        raise OSError(*failure)
    return value


def _reason(error: Exception) -> str:
    """Returns the reason of a failed write, without the paths added by Orbax and TensorStore."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0]


def _is_not_orbax_error(record: logging.LogRecord) -> bool:
    """Logging filter that drops Orbax's error records, since Orbax also raises these errors."""
    return record.levelno != logging.ERROR or "orbax" not in record.pathname


def _shapes(tree: Any) -> dict[str, list[int]]:
    """Returns the shape of each array, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _stored_shape(leaf) for path, leaf in leaves}


def _stored_shape(leaf: Any) -> list[int]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return list(leaf.shape)
