"""Classification of errors: user errors, errors in the user's code, and bugs in flaxdl."""

import errno
import sys
import traceback

from flaxdl.errors import UserError
from flaxdl.tracebacks import is_user_code_error, located_message, shown_path, user_frames

_NO_BUGS = (errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT)


def report_user_error(error: Exception) -> bool:
    """Prints an error if the user can correct it; returns whether it was printed.

    - A UserError is printed as its message, with the line of the user's code that raised it, if
      any. If it was caused by an error in the user's code, that error is printed first, with the
      frames of the user's code only (with all frames if the innermost ones are flaxdl's).
    - Any other error that passed through the user's code, such as a TypeError in their model, is
      printed with its traceback and the innermost line of that code.
    - A full disk or a file name that is too long is printed as a single line.
    - Any other error is a bug in flaxdl or in a library that it calls, and is not printed.
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
    if cause is None or isinstance(cause, UserError):  # already part of the message
        return
    frames = user_frames(cause)
    if not frames:
        return
    if not is_user_code_error(cause):
        traceback.print_exception(cause)
        return
    if not isinstance(cause, SyntaxError):  # its message contains the line
        print("Traceback (most recent call last):", file=sys.stderr)
        print("".join(traceback.format_list(frames)), end="", file=sys.stderr)
    print("".join(traceback.format_exception_only(cause)), file=sys.stderr)
