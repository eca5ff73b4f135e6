"""Local paths: expansion of `~`, relative paths, the cache folder."""

import os
from contextlib import suppress
from pathlib import Path

from flaxdl.errors import UserError
from flaxdl.filesystem.remote_urls import is_url


def local_path(path: str | Path) -> Path:
    """Returns the path with a leading `~` or `~user` replaced by the home folder.

    As in a shell, `~user` is unchanged if there is no such user.

    Raises:
        UserError: if it is a URL, which only inputs and workdirs may be.
    """
    if is_url(path):
        raise UserError(f"{path} is a URL; this must be a local path")
    return Path(os.path.expanduser(path))


def relative_path(path: str, folder: str | Path) -> str:
    """Returns the path of a file relative to a folder, with forward slashes.

    The path of a file on another drive of Windows remains absolute.
    """
    with suppress(ValueError):
        path = os.path.relpath(path, folder)
    return path.replace(os.sep, "/")


def cache_folder() -> Path:
    """Returns the cache folder: `$FLAXDL_CACHE`, or `flaxdl` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("FLAXDL_CACHE")
    if own:
        return local_path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "flaxdl"
