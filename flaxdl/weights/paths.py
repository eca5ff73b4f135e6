"""Paths of weights: `~`, and `FILE:KEY` for one of several sets of weights in a checkpoint."""

from pathlib import Path


def expand(path: str | Path) -> Path:
    """The path with the home folder in place of `~`, if there is one."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no user of that name
        return Path(path)


def split_member(path: str | Path) -> tuple[Path, str | None]:
    """The file or folder, and the name behind a colon that follows it.

    A path that exists is taken as it is, colons included; where nothing exists, so is the whole.

    >>> split_member("runs/student.ckpt:teacher")
    (PosixPath('runs/student.ckpt'), 'teacher')
    """
    path = expand(path)
    if not path.exists():
        text = str(path)
        for position in [place for place, letter in enumerate(text) if letter == ":"][::-1]:
            file = Path(text[:position])
            if position and text[position + 1 :] and file.exists():
                return file, text[position + 1 :]
    return path, None
