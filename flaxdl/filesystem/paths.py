"""Paths as users write them."""

import os
from pathlib import Path


def local_path(path: str | Path) -> Path:
    """Returns the path with a leading `~` or `~user` replaced by the home folder.

    As in a shell, the `~` of an unknown user is part of the name.
    """
    return Path(os.path.expanduser(path))
