"""The --config argument of commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl.cli.renamed import check_flags
from flaxdl.config import Config
from flaxdl.config_files import find_config, load_config

RunConfigFile = Annotated[
    Path | None,
    tyro.conf.arg(help="Config file of the run; only needed if it uses your own classes."),
]


@dataclass(frozen=True)
class ConfigArguments:
    """A config file and its config, with each field as a flag."""

    file: Annotated[Path, tyro.conf.arg(name="config")]
    """Config name, such as digits_cnn, or Python file; the config's fields are the flags below."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def load_run_config(file: Path | None) -> Config | None:
    """Returns the config in a file, or None if no file is given.

    Raises:
        UserError: if the file is missing, raises an error or is not a config file.
    """
    return None if file is None else load_config(file)


def config_file(arguments: Sequence[str]) -> tuple[Path, Config] | None:
    """Returns the path after `--config` and the config in that file, or None without the flag.

    Raises:
        UserError: if the file is missing, raises an error or is not a config file, or if another
            flag has been renamed.
    """
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag != "--config" or not (equals or index + 1 < len(arguments)):
            continue
        file = find_config(value if equals else arguments[index + 1])
        config = load_config(file)
        check_flags(arguments, Config, config)
        return file, config
    return None
