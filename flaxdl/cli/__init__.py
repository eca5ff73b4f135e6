"""The command line, `python -m flaxdl COMMAND`.

Each command is a module with a function `main` of two arguments: the command-line arguments and
the program name for usage messages. The other modules are shared by the commands.
"""

import errno
import io
import logging
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
import tyro

from flaxdl.backend.compilation_cache import enable_compilation_cache
from flaxdl.checks import did_you_mean
from flaxdl.cli import (
    completion,
    configs,
    course,
    evaluate,
    export,
    help_text,
    inspect,
    predict,
    report,
    runs,
    train,
    visualize,
)
from flaxdl.cli.blame import report_user_error
from flaxdl.errors import SaveError
from flaxdl.tracebacks import user_frames
from flaxdl.training.interruption import Interrupted
from flaxdl.training.loop import Diverged
from flaxdl.version import __version__

_SHUTDOWN_SECONDS = 5  # time that a failed process waits for other failed processes

COMMANDS: dict[str, Callable[[Sequence[str], str], None]] = {
    "train": train.main,
    "configs": configs.main,
    "evaluate": evaluate.main,
    "predict": predict.main,
    "export": export.main,
    "inspect": inspect.main,
    "runs": runs.main,
    "report": report.main,
    "visualize": visualize.main,
    "course": course.main,
    "completion": completion.main,
}


def main(arguments: Sequence[str], program: str = "python -m flaxdl") -> int:
    """Runs a command and returns its exit code.

    0: success.
    1: a bug in flaxdl or in a library that it calls; the exception is raised.
    2: a user error (UserError), printed as a single message; an error in the user's own code, such
       as a config file, printed with its traceback and location; a full disk.
    3: the loss diverged.
    130 and 143: interrupted (SIGINT) or terminated (SIGTERM), after a checkpoint was saved.
    """
    _prepare_streams()
    name, *rest = arguments or ["--help"]
    if name == "--version":
        print(f"flaxdl {__version__}")
        return 0
    if name not in COMMANDS:
        print(_usage(program))
        if name in ("-h", "--help"):
            return 0
        return _complain(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}", 2)
    if os.environ.get("NO_COLOR"):  # rich honors it, tyro does not
        tyro._experimental_options["ansi_codes"] = False
    help_text.set_up()
    enable_compilation_cache()
    _show_warnings()
    try:
        _run(COMMANDS[name], rest, program if program == "train.py" else f"{program} {name}")
    except Interrupted as interrupted:
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # waits for the other processes
        return _complain(str(interrupted), interrupted.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except SaveError as unsaved:
        return _complain(str(unsaved), 2)
    except Diverged as diverged:
        return _complain(str(diverged), 3)
    except Exception as error:
        if report_user_error(error):
            return 2
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        lost = "If it is a lost connection, another process has died; see that process's output."
        return _complain(f"process {jax.process_index()} failed with the error above. {lost}", 1)
    return 0


def _prepare_streams() -> None:
    """Replaces closed streams by the null device, and escapes characters that cannot be encoded.

    A stream closed by the shell (`>&-`) is None in Python. Without escapes, writing a file name
    that the terminal's encoding does not support would raise an error.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _usage(program: str) -> str:
    lines = [f"usage: {program} COMMAND ...", f"       {program} --version", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11} {(command.__doc__ or '').partition(chr(10))[0]}")
    return "\n".join([*lines, "", f"Run {program} COMMAND --help for the arguments of a command."])


def _show_warnings() -> None:
    """Prints warnings without a prefix, before a library installs its own handler.

    Python's last-resort handler looks up `sys.stderr` for each message, so that rich can print it
    above a live line.
    """
    if logging.lastResort is not None:
        logging.basicConfig(handlers=[logging.lastResort], format="%(message)s")


def _run(
    command: Callable[[Sequence[str], str], None], arguments: Sequence[str], program: str
) -> None:
    """Calls a command, and ignores the error if the reader of its output stops (as in `| head`).

    Raises:
        SaveError: if the output cannot be written because the disk is full.
    """
    try:
        try:
            command(arguments, program)
        finally:
            sys.stdout.flush()  # now, since an error at interpreter shutdown cannot be handled
    except OSError as error:
        # On Windows a broken pipe is EINVAL.
        is_unread = error.errno in (errno.EPIPE, errno.EINVAL) and _is_unread()
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and not user_frames(error)
        is_full = is_full and _is_refused()
        if not is_unread and not is_full:
            raise  # the error does not concern standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if is_full:
            raise SaveError(f"the output cannot be written: {error.strerror}") from error


def _is_unread() -> bool:
    """Returns whether standard output is a pipe that its reader has closed."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return _is_refused()


def _is_refused() -> bool:
    """Returns whether writing an empty line to standard output fails."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def leave(code: int) -> NoReturn:
    """Ends the process with the exit code of a command.

    After an interruption, it ends immediately, since the checkpoint is on disk and Python would
    wait for data-loading threads that may hang. After an error in one of several processes, it ends
    within a few seconds, since JAX would wait for the other processes while they wait for this one.
    """
    is_one_of_several = code != 0 and jax.distributed.is_initialized()
    if is_one_of_several:
        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(_SHUTDOWN_SECONDS)
    if is_one_of_several or code in (130, 143):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
