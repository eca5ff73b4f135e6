"""Decides whose mistake an error is: the user's, in one message or in their code, or flaxdl's."""

import errno
import sys
import traceback

from flaxdl.errors import UserError
from flaxdl.tracebacks import is_own_mistake, located_message, shown_path, user_frames

_NO_BUGS = (errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)


def report_user_error(error: Exception) -> bool:
    """Prints an error that the user can correct, and returns whether it is one.

    A UserError is its message, with the line of the user's code that it came through, if any; if
    another error in the user's code led to it, that comes first, with the lines of the user's code
    only, unless flaxdl's code was further in. Any other error that passed through the user's code,
    such as a TypeError in their model, is printed with its traceback and the innermost line of that
    code.
    A full disk and a name that is too long are one line. All others are bugs of flaxdl or of a
    library that it calls, and nothing is printed.
    """
    if isinstance(error, UserError):
        _print_cause(error.__cause__)
        print(located_message(error), file=sys.stderr)
        return True
    frames = user_frames(error)
    if not frames and isinstance(error, OSError) and error.errno in _NO_BUGS:
        name = "" if error.filename is None else f": {error.filename}"
        print(f"{error.strerror}{name}", file=sys.stderr)
        return True
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
    if not is_own_mistake(cause):
        traceback.print_exception(cause)
        return
    if not isinstance(cause, SyntaxError):  # which shows its line itself
        print("Traceback (most recent call last):", file=sys.stderr)
        print("".join(traceback.format_list(frames)), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(cause)), file=sys.stderr)
