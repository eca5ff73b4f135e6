"""Workdirs in buckets: local copies of them, for training and for reading.

The local copies are in the cache folder. One for training is kept in step with the bucket by a
`Mirror`; see `flaxdl.filesystem.snapshots` for how it is stored there.
"""

import hashlib
import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import jax
from rich.console import Console

from flaxdl.errors import UserError
from flaxdl.filesystem.locks import locked
from flaxdl.filesystem.paths import cache_folder, local_path
from flaxdl.filesystem.remote import RemoteFolder
from flaxdl.filesystem.remote_lock import RemoteLock
from flaxdl.filesystem.remote_urls import is_url
from flaxdl.filesystem.snapshots import DamagedSnapshot, Snapshots, StoredFile, is_same, number_of
from flaxdl.runs.mirror import Mirror, read_marker, remove_marker, write_marker
from flaxdl.runs.workdir import Workdir
from flaxdl.training.checkpoints.folder import CheckpointFolder, CorruptCheckpoint
from flaxdl.training.checkpoints.manifest import find_damage
from flaxdl.training.distributed.collectives import is_first, run_on_all, run_on_first

_LOGGER = logging.getLogger(__name__)


@contextmanager
def training_workdir(workdir: str | Path) -> Iterator[Workdir]:
    """Context manager that yields a local workdir to train in.

    That is the folder of a path. Of a URL, it is a local copy, which is first brought up to date
    with the bucket, and then copied there while the run trains and at the end. If there are several
    processes, each has a copy of its own, and only that of the first one is copied to the bucket.

    Args:
        workdir: path or URL.

    Raises:
        UserError: if the bucket cannot be used, or if another run is training there.
        CorruptCheckpoint: if all snapshots in the bucket are damaged.
        SaveError: if the last copy fails, and the block raises no exception.
    """
    if not is_url(workdir):
        yield Workdir(workdir)
        return
    with ExitStack() as stack:
        remote = _open(workdir)
        mirror = run_on_first(partial(_locked_mirror, remote, stack))
        folder = run_on_all(partial(_own_copy, remote))
        console = Console(stderr=True, quiet=not is_first(), markup=False, highlight=False)
        console.print(f"{remote.url}: training in the local copy {folder}", soft_wrap=True)
        if mirror is not None:
            stack.enter_context(mirror.running())
        yield Workdir(folder, is_shared=jax.process_count() == 1)
        console.print(f"{remote.url}: uploading the last files", soft_wrap=True)


def _open(workdir: str | Path) -> RemoteFolder:
    """Opens a remote workdir.

    Raises:
        UserError: if the URL is invalid, or if it is below a folder that does not exist.
    """
    remote = RemoteFolder(workdir.as_posix() if isinstance(workdir, Path) else workdir)
    if remote.url.startswith("file:"):  # which would be created, also where a Drive is not mounted
        parent = Path(remote.url.removeprefix("file://")).parent
        if not parent.is_dir():
            raise UserError(
                f"{remote.url}: the folder {parent} must exist; create it, or mount the drive"
            )
    return remote


def _locked_mirror(remote: RemoteFolder, stack: ExitStack) -> Mirror:
    """Locks a folder in a bucket, brings the copy of this process up to date, and mirrors it."""
    writer = secrets.token_hex(4)
    with _os_errors():
        snapshots, lock = Snapshots(remote, writer), RemoteLock(remote, writer)
        stack.enter_context(lock.held())
        folder = _local_copy(remote.url, "training")
        stored = _resume(folder, snapshots)
        number = max(map(number_of, snapshots.names()), default=0)
        return Mirror(folder, snapshots, lock, number=number, stored=stored)


def _own_copy(remote: RemoteFolder) -> Path:
    """Returns the folder of this process's copy; brings it up to date, except in the first one."""
    with _os_errors():
        if is_first():
            return _local_copy(remote.url, "training")
        folder = _local_copy(remote.url, f"training-{jax.process_index()}")
        snapshots = Snapshots(remote, writer="")
        if snapshots.names():
            _restore(folder, snapshots)
        else:
            _remove_others(folder, {})
    return folder


def reading_copy(workdir: str | Path) -> Path:
    """Returns a local folder for reading a workdir: itself, or a copy of one in a bucket.

    Args:
        workdir: path or URL.

    Raises:
        UserError: if the bucket cannot be read, or if there is no run in it.
        CorruptCheckpoint: if all snapshots in the bucket are damaged.
    """
    if not is_url(workdir):
        return local_path(workdir)
    with _os_errors():
        remote = _open(workdir)
        folder = _local_copy(remote.url, "reading")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(".lock")):
            snapshots = Snapshots(remote, writer="")
            if not snapshots.names():
                raise UserError(f"there is no run in {remote.url}")
            _restore(folder, snapshots)
    return folder


def has_run(url: str) -> bool:
    """Returns True if a URL is that of a run in a bucket, not of a file.

    Raises:
        UserError: if the bucket cannot be read.
    """
    if url.startswith("http"):  # without listings of folders
        return False
    with _os_errors():
        return bool(Snapshots(RemoteFolder(url), writer="").names())


def _local_copy(url: str, purpose: str) -> Path:
    """Returns the folder of a local copy, whose name is that of the run."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", url.rpartition("/")[2])
    digest = hashlib.sha256(url.encode()).hexdigest()[:12]
    return cache_folder() / "runs" / digest / purpose / name


@contextmanager
def _os_errors() -> Iterator[None]:
    """Context manager that converts an OSError to a UserError with its message."""
    try:
        yield
    except OSError as error:
        raise UserError(str(error)) from error


def _resume(folder: Path, snapshots: Snapshots) -> dict[str, StoredFile]:
    """Brings the local copy of a run up to date with the bucket.

    A copy of the newest snapshot is kept: it may be newer, if the run was killed before it could
    copy its last files.

    Returns:
        The files of the local copy that are in the newest snapshot, too.

    Raises:
        UserError: if there is no snapshot any more, but the local copy is of one.
        CorruptCheckpoint: if all snapshots are damaged.
        OSError: if the bucket cannot be read, or the folder cannot be written.
    """
    known, names = read_marker(folder), snapshots.names()
    if not names:
        if known:
            raise UserError(
                f"{snapshots.remote.url} has no run any more, but there is a copy of one in "
                f"{folder}; use this path as --workdir, or delete that folder to start a new run"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return {}
    if names[0] in known:
        files = {}  # if its manifest is damaged
        with suppress(DamagedSnapshot):
            files = snapshots.read(names[0]).files
        if _is_whole(folder, files):
            return {name: file for name, file in files.items() if is_same(folder / name, file)}
    remove_marker(folder)  # in case this is interrupted
    files, name = _restore(folder, snapshots)
    write_marker(folder, [name])
    return files


def _is_whole(folder: Path, files: Mapping[str, StoredFile]) -> bool:
    """Returns True if a local copy has all files of a snapshot, or newer checkpoints."""
    others = [name for name in files if _step(name) is None]
    if not all((folder / name).is_file() for name in others):
        return False
    checkpoints = CheckpointFolder(folder / "checkpoints")
    newest = max((int(step) for name in files if (step := _step(name))), default=0)
    return newest == 0 or any(
        step >= newest and find_damage(checkpoints.path_of(step), step) is None
        for step in checkpoints.steps()
    )


def _restore(folder: Path, snapshots: Snapshots) -> tuple[dict[str, StoredFile], str]:
    """Makes a folder equal to the newest snapshot that is not damaged, see `_newest_undamaged`."""
    files, name = _newest_undamaged(folder, snapshots)
    _remove_others(folder, files)
    return files, name


def _newest_undamaged(folder: Path, snapshots: Snapshots) -> tuple[dict[str, StoredFile], str]:
    """Downloads the newest snapshot that is not damaged.

    Damaged checkpoints are left out if the snapshot has another one. While a run is training in the
    bucket, it removes old snapshots, which are then missing, and writes new ones.

    Returns:
        The downloaded files, and the name of the newest snapshot, damaged or not.

    Raises:
        CorruptCheckpoint: if all snapshots are damaged.
        OSError: if the bucket cannot be read, or the folder cannot be written.
    """
    tried: dict[str, str] = {}  # what is wrong, by name of the snapshot
    while names := [name for name in snapshots.names() if name not in tried]:
        name = names[0]
        try:
            files = snapshots.read(name).files
            damages = snapshots.fetch(files, folder)
            usable = _usable(files, damages)
        except DamagedSnapshot as error:
            tried[name] = str(error)
            continue
        if damages:
            tried[name] = _described(damages)
        if tried:
            _LOGGER.warning(
                "%s: %s; using the newest undamaged files",
                snapshots.remote.url,
                "; ".join(tried.values()),
            )
        return usable, max([name, *tried], key=number_of)
    raise CorruptCheckpoint(
        f"all snapshots in {snapshots.remote.url} are damaged ({'; '.join(tried.values())}). "
        "Nothing was changed; restore the files from a backup, or use another --workdir"
    )


def _usable(files: Mapping[str, StoredFile], damages: Mapping[str, str]) -> dict[str, StoredFile]:
    """Returns the files of a snapshot without those of damaged checkpoints.

    Raises:
        DamagedSnapshot: if all checkpoints are damaged, or another file is.
    """
    damaged = {_step(name) for name in damages}
    usable = {name: file for name, file in files.items() if _step(name) not in damaged}
    had_checkpoints = any(map(_step, files))
    if None in damaged or (had_checkpoints and not any(map(_step, usable))):
        raise DamagedSnapshot(_described(damages))
    return usable


def _step(name: str) -> str | None:
    """Returns the step of the checkpoint that a file belongs to, if any."""
    folder, *inside = name.split("/")
    return inside[0] if folder == "checkpoints" else None


def _described(damages: Mapping[str, str]) -> str:
    name = min(damages)
    more = f" and {len(damages) - 1} more files" if len(damages) > 1 else ""
    return f"{name} is {damages[name]}{more}"


def _remove_others(folder: Path, files: Mapping[str, StoredFile]) -> None:
    """Removes all files and folders except these and hidden ones."""
    kept = {folder / name for name in files}
    kept |= {parent for path in kept for parent in path.parents}
    for path in sorted(folder.rglob("*")):
        if path in kept or path.relative_to(folder).parts[0].startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
