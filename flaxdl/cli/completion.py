"""`completion`: shell completion scripts for `flaxdl`."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from flaxdl.cli import configs, course, evaluate, export, predict, report, runs, visualize
from flaxdl.cli.inspect import InspectArguments
from flaxdl.cli.train import TrainArguments
from flaxdl.config_files import load_config


def main(arguments: Sequence[str], program: str) -> None:
    """Print a shell completion script for the commands and flags of `flaxdl`."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]],
    config: tyro.conf.Positional[Path],
) -> None:
    """Print a shell completion script for the commands and flags of `flaxdl`.

    Args:
        shell: Shell that runs the script.
        config: Config name, such as digits_cnn, or Python file; the fields of the config are
            completed as flags of train and inspect.
    """
    value = load_config(config)
    commands = {
        "train": (TrainArguments, TrainArguments(file=config, config=value)),
        "evaluate": (evaluate.command, tyro.MISSING),
        "predict": (predict.command, tyro.MISSING),
        "export": (export.command, tyro.MISSING),
        "inspect": (InspectArguments, InspectArguments(file=config, config=value)),
        "configs": (configs.command, tyro.MISSING),
        "runs": (runs.command, tyro.MISSING),
        "report": (report.command, tyro.MISSING),
        "visualize": (visualize.command, tyro.MISSING),
        "course": (course.command, tyro.MISSING),
        "completion": (command, tyro.MISSING),
    }
    parsers = tuple(
        Annotated[kind, tyro.conf.subcommand(name, default=default)]
        for name, (kind, default) in commands.items()
    )
    everything: Any = Union[parsers]  # noqa: UP007  (of a tuple)
    with contextlib.redirect_stdout(io.StringIO()) as script, contextlib.suppress(SystemExit):
        tyro.cli(everything, prog="flaxdl", args=["--tyro-print-completion", shell])
    for line in script.getvalue().splitlines():
        # Shells read one completion per line, so descriptions must be on a single line.
        print(line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line)
