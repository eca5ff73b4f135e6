"""The command line: `python -m flaxdl train | evaluate | predict | export | inspect`.

A command is a function of its arguments, as texts, and of how the program was called.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from flaxdl.commands.evaluate import evaluate
from flaxdl.commands.export import export
from flaxdl.commands.inspect import inspect
from flaxdl.commands.predict import predict
from flaxdl.commands.train import train
from flaxdl.spelling import did_you_mean
from flaxdl.training.interruption import Interrupted
from flaxdl.training.loop import Diverged

_PACKAGE = Path(__file__).parent.parent

COMMANDS: dict[str, Callable[[Sequence[str], str], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "inspect": inspect,
}


def main(arguments: Sequence[str], program: str = "python -m flaxdl") -> int:
    """Runs a command and returns its exit code.

    0 done, 1 our fault (with a traceback), 2 the user's mistake, 3 the numbers diverged, 130 and
    143 interrupted or terminated, after saving.
    """
    name, *rest = arguments or ["--help"]
    if name not in COMMANDS:
        print(f"usage: {program} {{{','.join(COMMANDS)}}} ...")
        if name in ("-h", "--help"):
            return 0
        return _complain(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}", 2)
    try:
        COMMANDS[name](rest, f"{program} {name}" if program.startswith("python") else program)
    except Interrupted as interrupted:
        return _complain(str(interrupted), interrupted.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Diverged as diverged:
        return _complain(str(diverged), 3)
    except ValueError as error:
        if not _raised_by_us(error.__traceback__):
            raise
        return _complain(str(error), 2)
    return 0


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
