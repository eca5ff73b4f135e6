"""The config file that a command line names, whose fields are its other flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl.config import Config
from flaxdl.config_files import load_config


@dataclass(frozen=True)
class ConfigArguments:
    """A config file and its fields."""

    file: Annotated[Path, tyro.conf.arg(name="config")]
    """The config file, such as configs/digits_cnn.py; its fields are the flags below."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def config_file(arguments: Sequence[str]) -> tuple[Path, Config] | None:
    """The path behind `--config`, and the config in that file; None without the flag.

    Raises:
        UserError: if the file is missing or no config file.
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
