"""`report`: an HTML report of a run, or a comparison of several."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from flaxdl.cli.config_file import RunConfigFile, load_run_config
from flaxdl.filesystem.outputs import output_file
from flaxdl.report import write as reporting


def main(arguments: Sequence[str], program: str) -> None:
    """Write an HTML report of a run, or a comparison of several."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    workdir: tuple[Path, ...], to: Path | None = None, config: RunConfigFile = None
) -> None:
    """Write an HTML report of a run, or a comparison of several; the page works offline.

    Args:
        workdir: Run directories.
        to: Output file; for a single run, report.html in the run directory by default.
    """
    path = None if to is None else output_file(to, (".html", ".htm"))
    print(f"wrote {reporting.write_report(workdir, path, config=load_run_config(config))}")
