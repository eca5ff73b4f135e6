"""Search for the user's own code in the traceback of an error.

The user's code is a config file and the modules that it imports, except for flaxdl, Python's
standard library and installed packages.
"""

import os
import sysconfig
import traceback
from functools import lru_cache
from pathlib import Path
from traceback import FrameSummary

from flaxdl.errors import UserError

_FLAXDL = Path(__file__).resolve().parent
_STANDARD_LIBRARY = {Path(sysconfig.get_path(n)).resolve() for n in ("stdlib", "platstdlib")}
_INSTALLED = ("site-packages", "dist-packages")
_CYTHON = (".pyx", ".pxd", ".pxi")


class WorkerTraceback(Exception):
    """Traceback of an error in a worker process, set as the cause of that error.

    Tracebacks cannot be sent between processes, but their text and frames can.
    """

    def __init__(self, text: str, frames: list[FrameSummary]):
        # In newer Python versions, frame summaries contain code objects, which cannot be pickled.
        self.frames = [FrameSummary(f.filename, f.lineno, f.name, line=f.line) for f in frames]
        super().__init__(text, self.frames)
        self.text = text

    def __str__(self) -> str:
        return f"in a worker process:\n{self.text}"


def frames_of(error: BaseException) -> list[FrameSummary]:
    """Returns the frames of an error, innermost last, including those of a worker process."""
    frames = list(traceback.extract_tb(error.__traceback__))
    if isinstance(error.__cause__, WorkerTraceback):
        frames += error.__cause__.frames
    return frames


def user_frames(error: BaseException) -> list[FrameSummary]:
    """Returns the frames of an error that are in the user's code, innermost last.

    Frames before the first frame of flaxdl belong to the calling program and are omitted. For a
    SyntaxError, Python creates no frame in the file with the error, so one is added.
    """
    frames = frames_of(error)
    own = [place for place, frame in enumerate(frames) if _is_flaxdl(frame.filename)]
    found = [f for f in frames[own[0] :] if _is_users(f.filename)] if own else []
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        found.append(FrameSummary(error.filename, error.lineno or 1, "<module>"))
    return found


def is_user_code_error(error: BaseException) -> bool:
    """Returns True if the user's code raised an error, or called the library that raised it.

    Of the frames in the user's code and in flaxdl, the innermost one decides.
    """
    places = [frame.filename for frame in frames_of(error)]
    if isinstance(error, SyntaxError) and error.filename:  # it has no frame in this file
        places.append(error.filename)
    return next((_is_users(x) for x in reversed(places) if _is_users(x) or _is_flaxdl(x)), False)


def located_message(error: BaseException) -> str:
    """Returns the message of an error, with the line of the user's code that caused it, if any."""
    message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    frames = user_frames(error)
    if not frames:
        return message
    return f"{message} (in your code: {shown_path(frames[-1].filename)}, line {frames[-1].lineno})"


def shown_path(filename: str) -> str:
    """Returns a path relative to the working directory if it is inside it, else unchanged."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@lru_cache(maxsize=1024)
def _is_flaxdl(filename: str) -> bool:
    return _FLAXDL in Path(os.path.realpath(filename)).parents


@lru_cache(maxsize=1024)
def _is_users(filename: str) -> bool:
    # <string> and <frozen importlib> are not files. Frames of Cython code have the path of the
    # source file on the machine that compiled it.
    if not os.path.isfile(filename) or filename.endswith(_CYTHON) or _is_flaxdl(filename):
        return False
    path = Path(os.path.realpath(filename))
    is_installed = any(part in _INSTALLED for part in path.parts)
    return not is_installed and _STANDARD_LIBRARY.isdisjoint(path.parents)
