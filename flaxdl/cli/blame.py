"""Decides whose mistake an error is: the user's, in one message or in their code, or flaxdl's."""

import errno
import sys
import traceback

from flaxdl.errors import UserError
from flaxdl.tracebacks import shown_path, user_frames


def report_user_error(error: Exception) -> bool:
    """Prints an error that the user can correct, and returns whether it is one.

    A UserError is its message; if an error in the user's code led to it, that comes first, with
    the lines of the user's code only. Any other error that passed through the user's code, such as
    a TypeError in their model, is printed with its traceback and the innermost line of that code.
    All others are bugs of flaxdl or of a library that it calls, and nothing is printed.
    """
    if isinstance(error, UserError):
        _print_cause(error.__cause__)
        print(error, file=sys.stderr)
        return True
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        print(f"{error.strerror}: {error.filename}", file=sys.stderr)
        return True
    frames = user_frames(error)
    if not frames:
        return False
    traceback.print_exception(error)
    frame = frames[-1]
    place = f"{shown_path(frame.filename)}, line {frame.lineno}, in {frame.name}"
    print(f"this error was raised by your code: {place}", file=sys.stderr)
    return True


def _print_cause(cause: BaseException | None) -> None:
    if cause is None or isinstance(cause, UserError):  # whose message is part of the other
        return
    frames = user_frames(cause)
    if not frames:
        return
    if not isinstance(cause, SyntaxError):  # which shows its line itself
        print("Traceback (most recent call last):", file=sys.stderr)
        print("".join(traceback.format_list(frames)), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(cause)), file=sys.stderr)
