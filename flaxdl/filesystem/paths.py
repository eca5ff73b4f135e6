"""Expansion of `~` in paths, and relative paths."""

import os
from contextlib import suppress
from pathlib import Path


def local_path(path: str | Path) -> Path:
    """Returns the path with a leading `~` or `~user` replaced by the home folder.

    As in a shell, `~user` is unchanged if there is no such user.
    """
    return Path(os.path.expanduser(path))


def relative_path(path: str, folder: str | Path) -> str:
    """Returns the path of a file relative to a folder, with forward slashes.

    The path of a file on another drive of Windows remains absolute.
    """
    with suppress(ValueError):
        path = os.path.relpath(path, folder)
    return path.replace(os.sep, "/")
