"""`completion`: what makes a shell complete the words of `flaxdl`."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from flaxdl.cli.evaluate import command as evaluate
from flaxdl.cli.export import command as export
from flaxdl.cli.inspect import InspectArguments
from flaxdl.cli.predict import command as predict
from flaxdl.cli.report import command as report
from flaxdl.cli.runs import command as runs
from flaxdl.cli.train import TrainArguments
from flaxdl.cli.visualize import command as visualize
from flaxdl.config_files import load_config


def completion(arguments: Sequence[str], program: str) -> None:
    """Prints a shell's script for the installed program `flaxdl`."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]],
    config: tyro.conf.Positional[Path],
) -> None:
    """Prints a script by which a shell completes `flaxdl`, its commands and their flags.

    Args:
        shell: Whose script.
        config: A config file, such as configs/digits_cnn.py; train and inspect complete its fields.
    """
    value = load_config(config)
    commands = {
        "train": (TrainArguments, TrainArguments(file=config, config=value)),
        "evaluate": (evaluate, tyro.MISSING),
        "predict": (predict, tyro.MISSING),
        "export": (export, tyro.MISSING),
        "inspect": (InspectArguments, InspectArguments(file=config, config=value)),
        "runs": (runs, tyro.MISSING),
        "report": (report, tyro.MISSING),
        "visualize": (visualize, tyro.MISSING),
        "completion": (command, tyro.MISSING),
    }
    parsers = tuple(
        Annotated[kind, tyro.conf.subcommand(name, default=default)]
        for name, (kind, default) in commands.items()
    )
    everything: Any = Union[parsers]  # noqa: UP007  (of as many as there are)
    with contextlib.redirect_stdout(io.StringIO()) as script, contextlib.suppress(SystemExit):
        tyro.cli(everything, prog="flaxdl", args=["--tyro-print-completion", shell])
    for line in script.getvalue().splitlines():
        # The shells take a line as an answer, so that descriptions must not have several.
        print(line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line)
