"""The folder of a run's checkpoints.

A checkpoint is a folder named after its step. It is written under a temporary name, gets a manifest
of its files, and is then renamed, so a folder with a final name is complete. The manifest is used
to detect later damage and checkpoints that were renamed to another step.
"""

import errno
import fnmatch
import itertools
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import sync, sync_folder
from flaxdl.training.checkpoints.manifest import find_damage, last_line, write_manifest

_LOGGER = logging.getLogger(__name__)
_PARTIAL = ".partial"  # suffix of checkpoints being written or removed
_MIN_FREE_INODES = 100  # on file systems that limit them; Orbax writes about 20 files


class CorruptCheckpoint(UserError):
    """Raised when a checkpoint is damaged, or was renamed to another step."""


def check_path(path: Path) -> None:
    """Checks that Orbax can read back checkpoints that it writes below a path.

    Orbax searches its folders with glob patterns that contain the path unescaped, TensorStore
    treats a backslash as a slash, and names must be UTF-8. Checkpoints below unsuitable paths would
    be incomplete.

    Raises:
        UserError: if a part of the absolute path is a glob pattern that does not match itself (such
            as `run[1]`), contains a backslash, or is not UTF-8.
    """
    path = path.absolute()
    for part in path.relative_to(path.anchor).parts:
        try:
            part.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"checkpoints cannot be saved in {str(path)!r}: Orbax needs folder names in "
                f"UTF-8, got {os.fsencode(part)!r}; rename the folder"
            ) from None
        if "\\" in part or not fnmatch.fnmatchcase(part, part):
            raise UserError(
                f"checkpoints cannot be saved in {path}: Orbax cannot read them back from a path "
                f"with the folder {part!r}; rename it, without brackets and backslashes"
            )


class CheckpointFolder:
    """A folder of checkpoints. Only the holder of the run's lock may change it.

    Args:
        path: path of the folder; it need not exist.

    Raises:
        UserError: if Orbax cannot read back checkpoints from the path, or if it is not a folder.
    """

    def __init__(self, path: Path):
        check_path(path)
        self.path = path.absolute()
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UserError(f"{self.path} must be a folder of checkpoints, but it is not a folder")

    def prepare(self, step: int, size: int) -> None:
        """Creates the folder if it is missing, and checks that a checkpoint can be written.

        The workdir itself must exist. The check fails early: on a full disk, Orbax's threads would
        print tracebacks, and other processes would wait twenty minutes at a barrier.

        Args:
            step: step of the checkpoint.
            size: size of the checkpoint in bytes.

        Raises:
            OSError: if the folder is not writable, or if the disk is full.
        """
        self.path.mkdir(exist_ok=True)
        disk = shutil.disk_usage(self.path)
        if disk.total > 0 and disk.free < size:  # the total is 0 on file systems without a limit
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if _free_inodes(self.path) < _MIN_FREE_INODES:
            raise OSError(errno.ENOSPC, "The file system has almost no free inodes")
        self.remove_partial(step)  # left by a removal that failed
        self.partial_path(step).mkdir()
        self.partial_path(step).rmdir()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first."""
        return sorted(
            int(path.name)
            for path in self.path.glob("*")
            if re.fullmatch("0|[1-9][0-9]{0,17}", path.name) and path.is_dir()
        )

    def path_of(self, step: int) -> Path:
        """Returns the path of the checkpoint of a step, whether it exists or not."""
        return self.path / f"{step}"

    def partial_path(self, step: int) -> Path:
        """Returns the temporary path at which the checkpoint of a step is written."""
        return self.path / f"{step}{_PARTIAL}"

    def complete(self, step: int, last_line: int | None) -> None:
        """Completes a written checkpoint: adds the manifest, syncs to disk, and renames it.

        Args:
            step: step of the checkpoint.
            last_line: step of the newest line of metrics; None if there is none.
        """
        write_manifest(self.partial_path(step), step, last_line)
        for path in [*self.partial_path(step).rglob("*"), self.partial_path(step)]:
            sync_folder(path) if path.is_dir() else sync(path)
        self.partial_path(step).rename(self.path_of(step))
        sync_folder(self.path)

    def last_line(self, step: int) -> int | None:
        """Returns the step of the newest line of metrics at the time of saving; None if unknown."""
        return last_line(self.path_of(step))

    def remove(self, step: int) -> None:
        """Removes a checkpoint atomically: readers see all of it or nothing."""
        self.remove_partial(step)  # left by a removal that failed; it would block the rename
        self.path_of(step).rename(self.partial_path(step))
        self.remove_partial(step)

    def remove_partial(self, step: int | None = None) -> None:
        """Deletes partially written or removed checkpoints of one step, by default of all."""
        for path in self.path.glob(f"{'*' if step is None else step}{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)

    def check(self, step: int) -> None:
        """Verifies the checksums of a checkpoint.

        Raises:
            CorruptCheckpoint: if the checkpoint is damaged; the message names the affected files.
        """
        damage = find_damage(self.path_of(step), step)
        if damage is not None:
            raise CorruptCheckpoint(
                f"the checkpoint of step {step} in {self.path} is damaged: {damage}"
            )

    def recover(self) -> int:
        """Moves damaged checkpoints to a subfolder and returns the newest undamaged step (or 0).

        Raises:
            CorruptCheckpoint: if all checkpoints are damaged; nothing is changed.
        """
        damages = {step: find_damage(self.path_of(step), step) for step in self.steps()}
        damages = {step: damage for step, damage in damages.items() if damage is not None}
        undamaged = [step for step in self.steps() if step not in damages]
        described = "; ".join(f"step {step}: {damage}" for step, damage in damages.items())
        if damages and not undamaged:
            raise CorruptCheckpoint(
                f"all checkpoints in {self.path} are damaged ({described}). Nothing was changed; "
                "restore one from a backup, or start again in another --workdir"
            )
        self.remove_partial()
        for step in damages:
            self._move_aside(step)
        if damages:
            _LOGGER.warning(
                "damaged checkpoints were moved to %s (%s); resuming from step %d",
                self._damaged_folder(),
                described,
                max(undamaged),
            )
        return max(undamaged, default=0)

    def _move_aside(self, step: int) -> None:
        aside = self._damaged_folder()
        aside.mkdir(exist_ok=True)
        places = _numbered(aside / f"{step}")
        self.path_of(step).rename(next(place for place in places if not os.path.lexists(place)))

    def _damaged_folder(self) -> Path:
        """Returns the folder for damaged checkpoints, with a number if a file has its name."""
        places = _numbered(self.path / "damaged")
        return next(place for place in places if place.is_dir() or not os.path.lexists(place))


def _numbered(path: Path) -> Iterator[Path]:
    """Yields the path itself, then `path.1`, `path.2` and so on."""
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.name}.{number}")


def _free_inodes(folder: Path) -> int:
    """Returns the number of free inodes; `_MIN_FREE_INODES` where the file system has no limit."""
    if not hasattr(os, "statvfs"):
        return _MIN_FREE_INODES
    status = os.statvfs(folder)
    # Some network file systems report -1.
    return status.f_favail if status.f_files > 0 and status.f_favail >= 0 else _MIN_FREE_INODES
