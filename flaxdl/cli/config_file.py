"""Config files and runs that a command line names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl.config import Config
from flaxdl.config_files import load_config

RunConfigFile = Annotated[
    Path | None,
    tyro.conf.arg(help="Config file of the run; needed only if it uses classes of your own."),
]


@dataclass(frozen=True)
class ConfigArguments:
    """A config file and its fields, which are flags."""

    file: Annotated[Path, tyro.conf.arg(name="config")]
    """Config file, such as configs/digits_cnn.py; its fields are the flags below."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def load_run_config(file: Path | None) -> Config | None:
    """Returns the config of a run that was given by its file; None if none was given.

    Raises:
        UserError: if the file is missing, fails or is no config file.
    """
    return None if file is None else load_config(file)


def config_file(arguments: Sequence[str]) -> tuple[Path, Config] | None:
    """Returns the path after `--config` and the config in that file; None without the flag.

    Raises:
        UserError: if the file is missing, fails or is no config file.
    """
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag != "--config":
            continue
        if equals:
            return Path(value), load_config(value)
        if index + 1 < len(arguments):
            return Path(arguments[index + 1]), load_config(arguments[index + 1])
    return None
