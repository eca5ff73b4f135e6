"""Checkpoints of the whole training state, written by Orbax in the background, checked when read.

Of several processes the first one names, judges, moves and deletes; the others learn of it.
"""

import errno
import itertools
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from flaxdl.errors import SaveError, UserError
from flaxdl.training.checkpoints.folder import CheckpointFolder, CorruptCheckpoint
from flaxdl.training.distributed.collectives import broadcast_from_first, is_first
from flaxdl.training.state import TrainState

_LOGGER = logging.getLogger(__name__)
_BARRIER_MILLISECONDS = 1_200_000  # as long as Orbax waits at its own


class Checkpoints:
    """The checkpoints of a run: the newest few, and the best one.

    Each save leaves about 20 kB of memory behind: Orbax reads TensorStore's metrics in every save,
    which leak, and has no option that turns it off.

    Args:
        directory: where they lie, one folder a step.
        keep: how many of the newest are kept.
        best_step: returns the best step so far, whose checkpoint is kept as well.
        last_line: returns the step of the newest line of metrics.

    Raises:
        UserError: if checkpoints cannot be read back from there.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        best_step: Callable[[], int | None] = lambda: None,
        last_line: Callable[[], int | None] = lambda: None,
    ):
        import orbax.checkpoint as ocp

        logging.getLogger("absl").addFilter(_is_not_of_orbax)
        self._folder = CheckpointFolder(directory)
        self._keep = keep
        self._best_step = best_step
        self._last_line = last_line
        self._serialize = ocp.tree.serialize_tree
        self._barrier: Any = ocp.multihost.get_barrier_sync_fn()
        self._barriers = itertools.count()
        self._checkpointer = ocp.StandardCheckpointer()
        self._background = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        self._failure: SaveError | None = None

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first, as the first process lists them.

        All processes call it together: a shared file system may show them a folder at different
        times, and they must not decide differently.
        """
        return broadcast_from_first(self._folder.steps())

    def recover(self) -> int:
        """Makes ready to go on; returns the step of the newest sound checkpoint, 0 without any.

        What an interrupted save has left is removed, damaged checkpoints are named and set aside.

        Raises:
            CorruptCheckpoint: if there are checkpoints and all are damaged; nothing is changed.
        """
        return _from_first(self._folder.recover)

    def save(self, state: TrainState, *, also_keep: int | None = None) -> None:
        """Copies the state off the devices and goes on writing it in the background.

        Where that fails a warning says so, now or when it happens, and the run goes on with the
        checkpoints that it has.

        Args:
            state: what is saved.
            also_keep: a step whose checkpoint is not removed.
        """
        step = int(state.step)
        self.settle()
        steps = self.steps()
        if step in steps:
            return
        kept = {*sorted([*steps, step])[-self._keep :], step, self._best_step(), also_keep}
        self._failure = None
        try:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            _from_first(lambda: self._folder.make_room(step, size))
            self._checkpointer.save(self._folder.partial(step), state)
        except Exception as error:
            self._fail(step, error)
        else:
            self._saving = self._background.submit(self._finish, step, kept, self._last_line())

    def last_line(self, step: int) -> int | None:
        """The step of the newest line of metrics when a checkpoint was saved, if recorded."""
        return _from_first(lambda: self._folder.last_line(step))

    def restore(self, like: TrainState, step: int) -> TrainState:
        """The state of a step, laid over the devices as the shapes in `like` say.

        Raises:
            CorruptCheckpoint: if its files were changed, are gone, or hold another step.
            UserError: if there is no such checkpoint, or it holds another state.
        """
        _from_first(lambda: self._folder.check(step))
        try:
            self.check(like, step)
            state: Any = self._checkpointer.restore(self._folder.of(step), like)
        except Exception as error:
            if not self._folder.of(step).is_dir():
                # The run that it belongs to went on and removed it while it was read here.
                raise CorruptCheckpoint(f"the checkpoint of step {step} is gone") from error
            raise
        if int(state.step) != step:  # its manifest may be older than steps in manifests
            raise CorruptCheckpoint(
                f"the checkpoint {self._folder.of(step)} holds the state of step "
                f"{int(state.step)}; rename or remove it"
            )
        return state

    def check(self, like: TrainState, step: int) -> None:
        """Checks that the checkpoint of a step holds a state of this structure.

        Raises:
            UserError: if there is none, or it does not, naming some of what differs.
        """
        if step not in self.steps():
            raise UserError(
                f"{self._folder.path} has no checkpoint of step {step}, only {self.steps()}"
            )
        metadata: Any = self._checkpointer.metadata(self._folder.of(step))
        ours = _shapes(self._serialize(like, keep_empty_nodes=True))
        theirs = _shapes(metadata.item_metadata.tree)
        differing = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        if differing:
            names = ", ".join(differing[:3])
            raise UserError(
                f"the checkpoint of step {step} in {self._folder.path} is that of another "
                f"model, optimizer or way of freezing: {len(differing)} of its arrays differ, "
                f"such as {names}"
            )

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps.

        Raises:
            OSError: if they cannot be removed.
        """
        self.settle()
        later = [other for other in self.steps() if other > step]
        _from_first(lambda: [self._folder.remove(other) for other in later])

    def settle(self) -> None:
        """Waits for the background, which has told of its failure itself."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            SaveError: if the state that was saved last could not be written.
        """
        self.settle()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self.settle()
        self._background.shutdown()
        self._checkpointer.close()

    def _finish(self, step: int, kept: set[int | None], last_line: int | None) -> None:
        """Waits for Orbax, completes the checkpoint, and removes what is not kept."""
        try:
            try:
                self._checkpointer.wait_until_finished()
                if is_first():
                    self._folder.complete(step, last_line)
                    for other in self._folder.steps():
                        if other not in kept:
                            self._folder.remove(other)
            finally:
                key = f"checkpoint {next(self._barriers)} complete"
                self._barrier(key=key, timeout_ms=_BARRIER_MILLISECONDS)
            if step not in self._folder.steps():
                raise OSError("the first process could not complete it")
        except Exception as error:
            self._fail(step, error)

    def _fail(self, step: int, error: Exception) -> None:
        if is_first():
            self._folder.remove_partial()
        what = f"the checkpoint of step {step} cannot be written: {_reason(error)}"
        self._failure = SaveError(what)
        self._failure.__cause__ = error
        newest = max(self._folder.steps(), default=None)
        _LOGGER.warning("%s. The newest good one is that of step %s", what, newest)


def _from_first(call: Callable[[], Any]) -> Any:
    """What a call in the first of all processes returns (JSON), for all.

    Raises:
        CorruptCheckpoint: in all processes, if it was raised in the first.
        OSError: likewise.
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
    """Why something cannot be written, without all the paths that Orbax and TensorStore tell."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        if os.strerror(number) in str(error):
            return os.strerror(number)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0]


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Keeps Orbax from logging, with tracebacks of its threads, what it raises as well."""
    return record.levelno != logging.ERROR or "orbax" not in record.pathname


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
