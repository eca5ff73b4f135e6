"""The command line, `python -m flaxdl COMMAND`.

Each command is a module with `main`, a function of the command-line arguments and of the name that
the program was called by; the other modules are shared by commands.
"""

import errno
import inspect as inspect_module  # `inspect` is a command
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

from flaxdl.backend.compilation_cache import keep_compiled
from flaxdl.checks import did_you_mean
from flaxdl.cli import (
    completion,
    evaluate,
    export,
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

_FAREWELL_SECONDS = 5  # for which a process that failed waits for others that failed with it

COMMANDS: dict[str, Callable[[Sequence[str], str], None]] = {
    "train": train.main,
    "evaluate": evaluate.main,
    "predict": predict.main,
    "export": export.main,
    "inspect": inspect.main,
    "runs": runs.main,
    "report": report.main,
    "visualize": visualize.main,
    "completion": completion.main,
}


def main(arguments: Sequence[str], program: str = "python -m flaxdl") -> int:
    """Runs a command and returns its exit code.

    0: done.
    1: a bug of flaxdl or of a library that it calls, which is raised.
    2: a mistake of the user, which is one message (UserError); an error in the user's own code,
       such as a config file, with its traceback and a line that says where; a full disk.
    3: the loss diverged.
    130 and 143: interrupted or terminated, after saving.
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
    tyro._strings.remove_single_line_breaks = _paragraphs  # pyright: ignore[reportAttributeAccessIssue]
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
    except Diverged as diverged:
        return _complain(str(diverged), 3)
    except Exception as error:
        if report_user_error(error):
            return 2
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        lost = "If a connection was lost, another process has died, and its own messages say why."
        return _complain(f"process {jax.process_index()} ends with the error above. {lost}", 1)
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


def _paragraphs(text: str) -> str:
    """Joins the lines of each paragraph of a docstring, which --help breaks as the terminal needs.

    tyro itself joins no lines that are indented, as those of an attribute's docstring are.
    """
    paragraphs = inspect_module.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _usage(program: str) -> str:
    lines = [f"usage: {program} COMMAND ...", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<11} {(command.__doc__ or '').partition(chr(10))[0]}")
    return "\n".join([*lines, "", f"{program} COMMAND --help shows the arguments of a command."])


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
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and not user_frames(error)
        is_full = is_full and _is_refused()
        if not is_unread and not is_full:
            raise  # of another pipe or file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if is_full:
            raise SaveError(f"the output cannot be written: {error.strerror}") from error


def _is_unread() -> bool:
    """Returns whether standard output is a pipe whose reader has gone."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    return _is_refused()


def _is_refused() -> bool:
    """Returns whether standard output takes nothing, by an empty line before the error."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def leave(code: int) -> NoReturn:
    """Ends the process with the exit code of a command.

    After an interruption at once: Python would wait for threads that prepare data, which may hang,
    and all that matters is on disk. After an error in one of several processes, soon: JAX would
    wait for the others, which wait for this one until it is gone.
    """
    is_one_of_several = code != 0 and jax.distributed.is_initialized()
    if is_one_of_several:
        farewell = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_SECONDS)
    if is_one_of_several or code in (130, 143):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code
