"""Files that appear under their names complete and on disk, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a new, empty file in the same folder, which replaces `path` at the end.

    The new file has a name of its own, so two processes do not write into each other's files and
    no link is followed. If the block raises, the new file is removed and `path` is unchanged.

    Raises:
        OSError: if the file cannot be created, written to disk or renamed.
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
    """Waits until the content of a file is on disk, so that it survives a power failure.

    Raises:
        OSError: if it cannot be written.
    """
    # Windows syncs only what is open for writing.
    number = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on disk, on file systems that can."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some servers sync none
        sync(path)
