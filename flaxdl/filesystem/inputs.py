"""Inputs from URLs: local copies that are updated when the remote files change."""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.locks import locked
from flaxdl.filesystem.paths import cache_folder, local_path
from flaxdl.filesystem.progress import progress_bar
from flaxdl.filesystem.remote import RemoteFolder, Stamp
from flaxdl.filesystem.remote_urls import is_url

THREADS = 16
PATIENCE = 15.0  # seconds of retries without a network before a complete copy is used
_NOTED_AFTER = 5.0  # seconds between records of what has been fetched

_LOGGER = logging.getLogger(__name__)


def input_path(path: str | Path) -> Path:
    """Returns the path of a local file or folder, or of the local copy of one at a URL.

    Copies are in the folder `urls` of the cache folder. Every call compares the size, entity tag,
    generation and time of change of the remote files with those of the copy, and fetches files that
    differ; files that no longer exist are removed from the copy. Without a network, a complete copy
    is used, with a warning.

    Args:
        path: local path, whose `~` is expanded, or URL of a file or folder: `gs://...`, `s3://...`,
            of another file system of fsspec, or that of a file at `https://...`.

    Raises:
        UserError: if the URL does not exist or cannot be fetched, or a package is missing.
    """
    if not is_url(path):
        return local_path(path)
    remote = RemoteFolder(path.as_posix() if isinstance(path, Path) else path)
    place = cache_folder() / "urls" / hashlib.sha256(remote.url.encode()).hexdigest()[:20]
    copy = place / "copy" / remote.url.partition("?")[0].rpartition("/")[2]
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with locked(place / "lock"):
            _update(remote, copy, place / "record.json")
    except OSError as error:
        raise UserError(str(error)) from error
    return copy


def _update(remote: RemoteFolder, copy: Path, record: Path) -> None:
    """Fetches the files that are not in the copy, or differ from it, and removes the others."""
    versions, is_complete = _read_record(record)
    try:
        files = remote.stamps(give_up_after=PATIENCE if is_complete else None)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        if not is_complete:
            raise
        _LOGGER.warning("%s. The copy in %s is used, which may be outdated", error, copy)
        return
    if not files:
        raise FileNotFoundError(f"{remote.url} does not exist, or is empty")
    _check_names(remote.url, files)
    for name in versions.keys() - files.keys():
        _remove(copy / name, copy)
    versions = {
        name: stamp.version
        for name, stamp in files.items()
        if versions.get(name) == stamp.version and _is_size(copy / name, stamp.size)
    }
    missing = {name: stamp for name, stamp in files.items() if name not in versions}
    if not missing and is_complete:
        return
    try:
        last = time.monotonic()
        for name in _fetched(remote, missing, copy):
            versions[name] = files[name].version
            if time.monotonic() > last + _NOTED_AFTER:
                _write_record(record, remote.url, versions, is_complete=False)
                last = time.monotonic()
    finally:
        _write_record(record, remote.url, versions, is_complete=len(versions) == len(files))


def _fetched(remote: RemoteFolder, files: Mapping[str, Stamp], copy: Path) -> Iterable[str]:
    """Fetches files with several threads; yields the name of each when it is complete."""
    for unfinished in copy.parent.rglob(".*.unfinished"):  # of a process that was killed
        unfinished.unlink(missing_ok=True)
    for folder in {(copy / name).parent for name in files}:
        folder.mkdir(parents=True, exist_ok=True)
    total = sum(stamp.size or 0 for stamp in files.values())
    executor = ThreadPoolExecutor(THREADS)
    try:
        count = f" ({len(files):,} files)" if len(files) > 1 else ""
        with progress_bar(f"{copy.name}{count}") as progress:
            bar = progress.add_task("", total=total or None)

            def fetch(name: str) -> str:
                received = 0

                def show(now: int) -> None:
                    nonlocal received
                    progress.advance(bar, now - received)
                    received = now

                remote.download(name, copy / name, show)
                show(files[name].size or received)  # some file systems report no progress
                return name

            for done in as_completed([executor.submit(fetch, name) for name in files]):
                yield done.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _remove(file: Path, root: Path) -> None:
    """Removes a file, and the folders above it that are empty then, which buckets do not have."""
    file.unlink(missing_ok=True)
    with suppress(OSError):
        for folder in file.relative_to(root).parents[:-1]:
            (root / folder).rmdir()


def _check_names(url: str, names: Iterable[str]) -> None:
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{url} contains {name!r}, which cannot be the name of a local file")


def _is_size(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)


def _read_record(path: Path) -> tuple[dict[str, str], bool]:
    """Returns the versions of the files in a copy by name, and whether no file is missing."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(path.read_text())
        return dict(record["versions"]), bool(record["is_complete"])
    return {}, False


def _write_record(path: Path, url: str, versions: Mapping[str, str], *, is_complete: bool) -> None:
    record = {"url": url, "is_complete": is_complete, "versions": versions}
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1))
