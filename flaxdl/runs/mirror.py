"""Copies of a local workdir to a bucket, made in the background while a run trains."""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flaxdl.errors import SaveError
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.remote_lock import RemoteLock
from flaxdl.filesystem.snapshots import DamagedSnapshot, Snapshot, Snapshots, StoredFile, number_of
from flaxdl.training.checkpoints.folder import CheckpointFolder

_LOGGER = logging.getLogger(__name__)
_POLL = 1.0  # seconds between two looks at the workdir
_CHECKPOINT_INTERVAL = 10.0  # least seconds between two snapshots, if there is a new checkpoint
_INTERVAL = 60.0  # least seconds between two snapshots otherwise
_LONGEST_PAUSE = 300.0  # seconds between two attempts after failures
_READABLE = ("config.json", "metrics.jsonl", "report.html", "tokenizer.json", "events/")
_CHECKPOINTS = "checkpoints/"
_MARKER = ".snapshot"
_STAGING = ".staging"  # in the workdir, since hard links cannot leave its file system

Signature = tuple[int, int, int]
"""Inode, size and time of a file, which differ if it has changed."""


class Mirror:
    """Writes snapshots of a workdir to a bucket when it has changed.

    A snapshot contains the complete checkpoints and all other files that are not hidden, with lines
    of metrics at least as new as the newest checkpoint. Files that people read are also copied to
    their own names, such as `metrics.jsonl`; flaxdl does not read these copies.

    Args:
        folder: the local workdir.
        snapshots: the snapshots in the bucket.
        lock: lock of the folder in the bucket; nothing is written while another run holds it.
        number: number of the newest snapshot in the bucket, 0 if there is none.
        stored: files of the workdir that are in a snapshot already.
    """

    def __init__(
        self,
        folder: Path,
        snapshots: Snapshots,
        lock: RemoteLock,
        *,
        number: int,
        stored: Mapping[str, StoredFile],
    ):
        self._folder, self._snapshots, self._lock = folder, snapshots, lock
        self._number = self._committed = number
        self._stored = {name: (_signature(folder / name), file) for name, file in stored.items()}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context manager that copies in the background, and a last time at the end.

        Raises:
            SaveError: if the last copy fails; if the block raises an exception, this is logged.
        """
        stopped = threading.Event()
        thread = threading.Thread(target=self._run, args=(stopped,), name="mirror", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            stopped.set()
            thread.join()
            try:
                self.copy()
            except OSError as error:
                _LOGGER.warning("%s", self._not_copied(error))
            raise
        stopped.set()
        thread.join()
        try:
            self.copy()
        except OSError as error:
            again = "the same command on this machine copies the files"
            raise SaveError(f"{self._not_copied(error)}; {again}") from error

    def copy(self) -> bool:
        """Writes a snapshot if the workdir has changed since the last one; returns whether it has.

        Raises:
            OSError: if the bucket cannot be written, or if another run has taken over its lock.
        """
        steps = _steps(self._folder)
        found = _scan(self._folder)
        known = {
            name: file for name, (sign, file) in self._stored.items() if found.get(name) == sign
        }
        if len(known) == len(found) == len(self._stored):
            return False
        self._check_lock()
        self._number += 1  # also after a failure, as objects are never written twice
        staging = self._folder / _STAGING
        try:
            # Only checkpoints share objects: a snapshot is of no use without its other files, and
            # the damage of one object must not affect all snapshots.
            shared = {name: x for name, x in known.items() if name.startswith(_CHECKPOINTS)}
            staged = _stage(self._folder, [name for name in found if name not in shared], staging)
            # A checkpoint that was removed meanwhile, perhaps with lines of metrics, is left out.
            unchanged = dict(steps.items() & _steps(self._folder).items())
            files = _of_steps({**shared, **staged}, unchanged)
            snapshot = self._snapshots.upload(self._number, files)
            self._check_lock()  # again, as uploads take time
            # If writing the manifest fails, it may still have been written.
            write_marker(self._folder, [snapshot.name, *read_marker(self._folder)])
            self._snapshots.commit(snapshot)
            write_marker(self._folder, [snapshot.name])
            self._committed = snapshot.number
            self._stored = {name: (found[name], file) for name, file in snapshot.files.items()}
            changed = {name: path for name, path in staged.items() if name not in known}
            self._tidy(snapshot, changed)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return True

    def _check_lock(self) -> None:
        """Checks that no other run has held the lock since the last snapshot.

        Raises:
            OSError: if another run has, even if it has ended.
        """
        known = read_marker(self._folder)
        newer = (name for name in self._snapshots.names() if number_of(name) > self._committed)
        if not self._lock.is_mine() or any(name not in known for name in newer):
            raise OSError("another run has started there, whose files replace these on resume")

    def _tidy(self, snapshot: Snapshot, changed: Mapping[str, Path]) -> None:
        """Copies changed files that people read, and removes old snapshots; failures are logged."""
        try:
            for name, path in changed.items():
                if name.startswith(_READABLE):
                    self._snapshots.remote.upload(path, name)
            self._snapshots.remove_old(snapshot)
        except (OSError, DamagedSnapshot) as error:
            _LOGGER.warning(
                "%s has the newest files, but old ones remain and take space: %s",
                self._snapshots.remote.url,
                error,
            )

    def _run(self, stopped: threading.Event) -> None:
        """Copies until it is stopped; after failures, it waits longer each time."""
        last, failures = -float("inf"), 0
        while not stopped.wait(_POLL):
            try:
                pause = _CHECKPOINT_INTERVAL if self._has_new_checkpoint() else _INTERVAL
                if failures:
                    pause = min(_CHECKPOINT_INTERVAL * 2 ** (failures - 1), _LONGEST_PAUSE)
                if time.monotonic() - last < pause:
                    continue
                self.copy()
                failures = 0
            except Exception as error:  # which would end the thread, and all copying
                failures += 1
                _LOGGER.warning("%s; this will be tried again", self._not_copied(error))
            last = time.monotonic()

    def _has_new_checkpoint(self) -> bool:
        stored = {name.split("/")[1] for name in self._stored if name.startswith(_CHECKPOINTS)}
        return not stored.issuperset(_steps(self._folder))

    def _not_copied(self, error: Exception) -> str:
        return f"{self._folder} is not copied to {self._snapshots.remote.url}: {error}"


def read_marker(folder: Path) -> list[str]:
    """Returns the names of the snapshots of which the newest is equal to a local copy, or older.

    There are several if it is unknown which of them exist, and none if the bucket was empty or the
    folder is not a whole copy.
    """
    try:
        return (folder / _MARKER).read_text().split()
    except FileNotFoundError:
        return []


def write_marker(folder: Path, names: Iterable[str]) -> None:
    """Marks a folder as a whole local copy, see `read_marker`."""
    with atomic_write(folder / _MARKER) as unfinished:
        unfinished.write_text("\n".join(names))


def remove_marker(folder: Path) -> None:
    """Marks a folder as a local copy that is not whole."""
    (folder / _MARKER).unlink(missing_ok=True)


def _steps(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns the steps of complete checkpoints, with the inode and the time of each folder."""
    found, checkpoints = {}, CheckpointFolder(folder / _CHECKPOINTS)
    for step in checkpoints.steps():
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            status = checkpoints.path_of(step).stat()
            found[f"{step}"] = (status.st_ino, status.st_ctime_ns)
    return found


def _scan(folder: Path) -> dict[str, Signature]:
    """Returns the signatures of all files of a snapshot, those of checkpoints first.

    The order matters: lines of metrics that belong to a checkpoint are written before it.
    """
    inside = [folder / _CHECKPOINTS / step for step in _steps(folder)]
    outside = [
        path
        for path in folder.glob("*")
        if not path.name.startswith(".") and path.name != _CHECKPOINTS.strip("/")
    ]
    signatures = {}
    for path in (*_files(inside), *_files(outside)):
        with contextlib.suppress(FileNotFoundError):
            signatures[path.relative_to(folder).as_posix()] = _signature(path)
    return signatures


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields regular files and those in folders below, without links."""
    for path in paths:
        if path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(sorted(path.iterdir()))
        elif path.is_file():
            yield path


def _signature(path: Path) -> Signature:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _stage(folder: Path, names: Iterable[str], staging: Path) -> dict[str, Path]:
    """Links files of checkpoints, and copies others, so that they remain as they are now.

    Files that have been removed meanwhile are left out.

    Raises:
        OSError: if the disk is full.
    """
    shutil.rmtree(staging, ignore_errors=True)
    staged = {}
    for name in names:
        source, target = folder / name, staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if name.startswith(_CHECKPOINTS):
                _link(source, target)
            else:
                shutil.copyfile(source, target)
            staged[name] = target
    return staged


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _of_steps(
    files: Mapping[str, Path | StoredFile], steps: Container[str]
) -> dict[str, Path | StoredFile]:
    """Returns the files outside of checkpoints, and those of the checkpoints of some steps."""
    return {
        name: file
        for name, file in files.items()
        if not name.startswith(_CHECKPOINTS) or name.split("/")[1] in steps
    }
