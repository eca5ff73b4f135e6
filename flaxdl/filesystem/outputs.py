"""Files that a user asks for: their names are checked, and failures to write them explained."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path


def output_file(path: str | Path, suffixes: Sequence[str]) -> Path:
    """Returns the path of a file to write, with `~` replaced.

    Raises:
        UserError: if it has none of the suffixes, in either case, or is a folder.
    """
    path = local_path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"the output must be a {' or '.join(suffixes)} file, got {path}")
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises every OSError of its block as a UserError that says what cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(not_written(path, error)) from error


def not_written(path: Path, error: Exception) -> str:
    """Returns a sentence that says what cannot be written, and why."""
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{path} cannot be written: {reason or error}"
