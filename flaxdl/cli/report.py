"""`report`: a run, or several side by side, as a page to look at."""

from collections.abc import Sequence
from pathlib import Path

import tyro

from flaxdl.config_files import load_config
from flaxdl.errors import UserError
from flaxdl.report import write as reporting


def report(arguments: Sequence[str], program: str) -> None:
    """Writes a report that opens in any browser and needs no network."""
    tyro.cli(command, prog=program, args=arguments)


def command(workdir: tuple[Path, ...], to: Path | None = None, config: str | None = None) -> None:
    """Writes what a run has come to as an HTML file, or several runs side by side.

    Args:
        workdir: The folders of the runs.
        to: The file; by default report.html in the folder of the one run.
        config: The run's config file, where it uses classes of your own.
    """
    value = None if config is None else load_config(config)
    if to is not None and to.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--to must be a .html file, got {to}")
    print(f"wrote {reporting.write_report(workdir, to, config=value)}")
