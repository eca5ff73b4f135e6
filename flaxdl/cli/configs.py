"""`configs`: listing and printing of config files."""

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from flaxdl.config_files import find_config, list_configs


def main(arguments: Sequence[str], program: str) -> None:
    """List the available config files, or print one of them."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None,
) -> None:
    """List the available config files, or print one of them.

    To edit a copy of digits_cnn: flaxdl configs digits_cnn > mine.py

    Args:
        name: Name of the config to print, such as digits_cnn; by default, all configs are listed.
    """
    if name is None:
        print_configs()
        return
    text = find_config(name).read_text(encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the encoding of Python files, even on Windows
    print(text, end="")


def print_configs() -> None:
    """Prints the name and the summary of each config."""
    summaries = list_configs()
    width = max(map(len, summaries), default=0)
    for name, summary in summaries.items():
        print(f"{name:<{width}}  {summary}")
