"""The command line: `python -m flaxdl COMMAND`, with the commands below.

A command is a function of its arguments, as texts, and of how the program was called.
"""

import errno
import io
import logging
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import jax
import tyro

from flaxdl.backend.compilation_cache import keep_compiled
from flaxdl.checks import did_you_mean
from flaxdl.cli.completion import completion
from flaxdl.cli.evaluate import evaluate
from flaxdl.cli.export import export
from flaxdl.cli.inspect import inspect
from flaxdl.cli.predict import predict
from flaxdl.cli.report import report
from flaxdl.cli.runs import runs
from flaxdl.cli.train import train
from flaxdl.cli.visualize import visualize
from flaxdl.errors import SaveError
from flaxdl.training.interruption import Interrupted
from flaxdl.training.loop import Diverged

_PACKAGE = Path(__file__).parent.parent

COMMANDS: dict[str, Callable[[Sequence[str], str], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "inspect": inspect,
    "runs": runs,
    "report": report,
    "visualize": visualize,
    "completion": completion,
}


def main(arguments: Sequence[str], program: str = "python -m flaxdl") -> int:
    """Runs a command and returns its exit code.

    0 done, 1 our fault (with a traceback), 2 the user's mistake or a disk that cannot be written,
    3 the numbers diverged, 130 and 143 interrupted or terminated, after saving.
    """
    _prepare_streams()
    name, *rest = arguments or ["--help"]
    if name not in COMMANDS:
        print(_usage(program))
        if name in ("-h", "--help"):
            return 0
        return _complain(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}", 2)
    if os.environ.get("NO_COLOR"):  # which rich knows by itself
        tyro._experimental_options["ansi_codes"] = False
    keep_compiled()
    _show_warnings()
    try:
        _run(COMMANDS[name], rest, program if program == "train.py" else f"{program} {name}")
    except Interrupted as interrupted:
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # where the processes wait for each other
        return _complain(str(interrupted), interrupted.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except SaveError as unsaved:
        return _complain(str(unsaved), 2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return _complain(f"{error.strerror}: {error.filename}", 2)
    except Diverged as diverged:
        return _complain(str(diverged), 3)
    except ValueError as error:
        if not _raised_by_us(error.__traceback__):
            raise
        return _complain(str(error), 2)
    return 0


def _prepare_streams() -> None:
    """Discards what is written to a stream that is closed, and writes any name to an open one.

    Python has no stream where the shell has closed it (`>&-`), and refuses names of files that are
    not in the terminal's encoding.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _usage(program: str) -> str:
    lines = [f"usage: {program} COMMAND ...", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11} {(command.__doc__ or '').partition(chr(10))[0]}")
    return "\n".join([*lines, "", f"{program} COMMAND --help says what each of them takes."])


def _show_warnings() -> None:
    """Shows warnings as they are, before a library sets up another way.

    Python's own handler looks up each time where standard error is, so a live line stays whole.
    """
    if logging.lastResort is not None:
        logging.basicConfig(handlers=[logging.lastResort], format="%(message)s")


def _run(
    command: Callable[[Sequence[str], str], None], arguments: Sequence[str], program: str
) -> None:
    """Calls a command; who reads its output may stop reading, as `| head` does.

    Raises:
        SaveError: if there is no room for its output.
    """
    try:
        try:
            command(arguments, program)
        finally:
            sys.stdout.flush()  # here, since Python itself complains when it does so at its end
    except OSError as error:
        # Windows says EINVAL.
        is_unread = error.errno in (errno.EPIPE, errno.EINVAL) and _is_unread()
        if not is_unread and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # of another pipe or file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not is_unread:
            raise SaveError(f"the output cannot be written ({error.strerror})") from error


def _is_unread() -> bool:
    """Returns whether standard output is a pipe whose reader has gone."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    try:
        print(flush=True)  # an empty line before the traceback, if it is read
    except OSError:
        return True
    return False


def leave(code: int) -> NoReturn:
    """Ends the process with the exit code of a command.

    After an interruption at once: Python would wait for threads that prepare data, which may hang,
    and all that matters is on disk.
    """
    if code in (130, 143):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _raised_by_us(traceback: TracebackType | None) -> bool:
    """Whether a line of flaxdl raised it, as it does for bad input, or a library it called.

    Lines are known by their file, since what a worker process raised arrives without modules.
    """
    file, module = "", ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return _PACKAGE in Path(file).parents or module == "__main__"
