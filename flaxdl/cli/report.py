"""`report`: an HTML page about a run, or several runs side by side."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from flaxdl.cli.config_file import RunConfigFile, load_run_config
from flaxdl.filesystem.outputs import output_file
from flaxdl.report import write as reporting


def main(arguments: Sequence[str], program: str) -> None:
    """Write an HTML report about one or more runs."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    workdir: tuple[Path, ...], to: Path | None = None, config: RunConfigFile = None
) -> None:
    """Write an HTML report about a run, or about several side by side; it needs no network.

    Args:
        workdir: Folders of the runs.
        to: File to write; by default, for one run, report.html in its folder.
    """
    path = None if to is None else output_file(to, (".html", ".htm"))
    print(f"wrote {reporting.write_report(workdir, path, config=load_run_config(config))}")
