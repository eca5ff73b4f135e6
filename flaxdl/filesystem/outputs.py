"""Path checks and write errors for output files chosen by the user."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path


def output_file(path: str | Path, suffixes: Sequence[str]) -> Path:
    """Checks the path of an output file and returns it with `~` expanded.

    Args:
        path: path of the file, which need not exist.
        suffixes: allowed suffixes, in lowercase and with the dot.

    Raises:
        UserError: if the path has another suffix (case is ignored), or is a folder.
    """
    path = local_path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"the output must be a {' or '.join(suffixes)} file, got {path}")
    if path.is_dir():
        raise UserError(f"{path} cannot be written: it is a folder")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager that converts an OSError in the block to a UserError about the path."""
    try:
        yield
    except OSError as error:
        raise UserError(not_written(path, error)) from error


def not_written(path: Path, error: Exception) -> str:
    """Returns the error message for a path that cannot be written, with the reason."""
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{path} cannot be written: {reason or error}"
