"""The folder of a run's checkpoints: names, completeness, damage.

A checkpoint is a folder named after its step. It is written under a temporary name, gets a manifest
of its files, and is then renamed, so a folder with its final name is complete. The manifest reveals
later damage, and a checkpoint under the name of another step.
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
from flaxdl.training.checkpoints.manifest import damage_of, last_line, write_manifest

_LOGGER = logging.getLogger(__name__)
_PARTIAL = ".partial"  # ends the name of what is being written or removed
_FILES = 100  # that must be free on file systems that count them; Orbax writes about twenty


class CorruptCheckpoint(UserError):
    """A checkpoint is not the one that was written under its name."""


def check_path(path: Path) -> None:
    """Checks that Orbax can read back what it writes below a path.

    Orbax searches its folders with patterns that contain the path unescaped, TensorStore takes a
    backslash for a slash, and names are UTF-8; checkpoints below other paths are incomplete.

    Raises:
        UserError: if a part of the absolute path is a pattern that does not match itself, such as
            `run[1]`, contains a backslash, or is not UTF-8.
    """
    path = path.absolute()
    for part in path.relative_to(path.anchor).parts:
        try:
            part.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"checkpoints cannot be kept in {str(path)!r}: Orbax needs names in "
                f"UTF-8, got {os.fsencode(part)!r}; rename the folder"
            ) from None
        if "\\" in part or not fnmatch.fnmatchcase(part, part):
            raise UserError(
                f"checkpoints cannot be kept in {path}: Orbax cannot read them back "
                f"from below a folder called {part!r}; rename it, without brackets and backslashes"
            )


class CheckpointFolder:
    """A folder of checkpoints; only what has the run's lock may change it.

    Args:
        path: the folder, which may be missing.

    Raises:
        UserError: if Orbax cannot read back what it writes there, or it is not a folder.
    """

    def __init__(self, path: Path):
        check_path(path)
        self.path = path.absolute()
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise UserError(f"{self.path} must be a folder of checkpoints, but it is none")

    def make_room(self, step: int, size: int) -> None:
        """Makes the folder in the workdir, if it is missing, but not the workdir.

        What cannot be written is not begun: of Orbax, stopped by the disk, threads complain on the
        terminal, and others wait for twenty minutes for a folder that never comes.

        Args:
            step: that of the checkpoint to come.
            size: its bytes.

        Raises:
            OSError: if nothing can be written there, or the disk has no room.
        """
        self.path.mkdir(exist_ok=True)
        disk = shutil.disk_usage(self.path)
        if disk.total > 0 and disk.free < size:  # file systems without an end have total 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if _free_files(self.path) < _FILES:
            raise OSError(errno.ENOSPC, "The file system can hold hardly any more files")
        self.remove_partial(step)  # of a removal that failed
        self.partial(step).mkdir()
        self.partial(step).rmdir()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(
            int(path.name)
            for path in self.path.glob("*")
            if re.fullmatch("0|[1-9][0-9]{0,17}", path.name) and path.is_dir()
        )

    def of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"{step}"

    def partial(self, step: int) -> Path:
        """Where the checkpoint of a step is written."""
        return self.path / f"{step}{_PARTIAL}"

    def complete(self, step: int, last_line: int | None) -> None:
        """Gives what is written its manifest and its name, once all of it is on disk.

        Args:
            step: that of the checkpoint.
            last_line: step of the newest line of metrics.
        """
        write_manifest(self.partial(step), step, last_line)
        for path in [*self.partial(step).rglob("*"), self.partial(step)]:
            sync_folder(path) if path.is_dir() else sync(path)
        self.partial(step).rename(self.of(step))
        sync_folder(self.path)

    def last_line(self, step: int) -> int | None:
        """The step of the newest line of metrics when a checkpoint was saved, if recorded."""
        return last_line(self.of(step))

    def remove(self, step: int) -> None:
        """Removes a checkpoint; whoever looks finds all of it or nothing."""
        self.remove_partial(step)  # what an earlier removal has left would be in the way
        self.of(step).rename(self.partial(step))
        self.remove_partial(step)

    def remove_partial(self, step: int | None = None) -> None:
        """Removes what was not written, or not removed, to the end; of one step or of all."""
        for path in self.path.glob(f"{'*' if step is None else step}{_PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)

    def check(self, step: int) -> None:
        """Reads all files of a checkpoint.

        Raises:
            CorruptCheckpoint: naming those that are not as they were written.
        """
        damage = damage_of(self.of(step), step)
        if damage is not None:
            raise CorruptCheckpoint(
                f"the checkpoint of step {step} in {self.path} is damaged: {damage}"
            )

    def recover(self) -> int:
        """Moves damaged checkpoints aside; returns the newest sound step, 0 if there was none.

        Raises:
            CorruptCheckpoint: if there are checkpoints and all are damaged; nothing is changed.
        """
        damages = {step: damage_of(self.of(step), step) for step in self.steps()}
        damages = {step: damage for step, damage in damages.items() if damage is not None}
        sound = [step for step in self.steps() if step not in damages]
        described = "; ".join(f"that of step {step}: {damage}" for step, damage in damages.items())
        if damages and not sound:
            raise CorruptCheckpoint(
                f"all checkpoints in {self.path} are damaged; {described}. Nothing was changed: "
                "restore a sound one, or start again in another --workdir"
            )
        self.remove_partial()
        for step in damages:
            self._set_aside(step)
        if damages:
            _LOGGER.warning(
                "damaged checkpoints were moved to %s; %s. The run resumes from step %d",
                self._aside(),
                described,
                max(sound),
            )
        return max(sound, default=0)

    def _set_aside(self, step: int) -> None:
        aside = self._aside()
        aside.mkdir(exist_ok=True)
        places = _numbered(aside / f"{step}")
        self.of(step).rename(next(place for place in places if not os.path.lexists(place)))

    def _aside(self) -> Path:
        """The folder of damaged checkpoints; a file may have its first name."""
        places = _numbered(self.path / "damaged")
        return next(place for place in places if place.is_dir() or not os.path.lexists(place))


def _numbered(path: Path) -> Iterator[Path]:
    """The path itself, then `path.1`, `path.2` and so on."""
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.name}.{number}")


def _free_files(folder: Path) -> int:
    """How many more files the file system can hold; enough where it does not count them."""
    if not hasattr(os, "statvfs"):
        return _FILES
    status = os.statvfs(folder)
    # Some network file systems answer -1.
    return status.f_favail if status.f_files > 0 and status.f_favail >= 0 else _FILES
