"""Atomic file writes: a file appears under its name complete and synced to disk, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Context manager that yields an empty temporary file, renamed to `path` when the block ends.

    The temporary file is in the same folder and has a random name, so that processes do not write
    to each other's files and links are not followed. If the block raises an exception, the
    temporary file is removed and `path` is unchanged.

    Raises:
        OSError: if the temporary file cannot be created, written to disk or renamed.
    """
    unfinished = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.unfinished")
    os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield unfinished
        sync(unfinished)
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Waits until the content of a file is on disk (fsync), so that it survives a power failure.

    Raises:
        OSError: if the content cannot be written to disk.
    """
    # Windows can sync only files that are open for writing.
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(path: Path) -> None:
    """Waits until the directory entries of a folder are on disk, where the system supports it."""
    # Windows cannot open folders, and some network file systems cannot sync them.
    with contextlib.suppress(OSError):
        sync(path)
