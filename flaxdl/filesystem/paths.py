"""Expansion of `~` in paths."""

import os
from pathlib import Path


def local_path(path: str | Path) -> Path:
    """Returns the path with a leading `~` or `~user` replaced by the home folder.

    As in a shell, `~user` is unchanged if there is no such user.
    """
    return Path(os.path.expanduser(path))
