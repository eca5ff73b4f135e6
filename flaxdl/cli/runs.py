"""`runs`: a table of the runs in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from flaxdl.cli.printing import print_table
from flaxdl.report.listing import RunSummary, list_runs, to_record
from flaxdl.training.writers.console import describe


def main(arguments: Sequence[str], program: str) -> None:
    """List the runs in a folder, with their date, state, scores and differing settings."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    folder: tyro.conf.Positional[Path] = Path("runs"),
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """List the runs in a folder and its subfolders, newest first.

    Scores are those on the test split or, without them, the best ones so far on the validation
    split. Settings are shown if they differ between runs with the same model class and data source.

    Args:
        folder: Folder to search.
        json_output: Print JSON, one object per line.
    """
    found = list_runs(folder)
    if json_output:
        for run in found:
            print(json.dumps(to_record(run)))
        return
    table = Table()
    for title in ("run", "updated", "state", "scores", "differs in"):
        table.add_column(title, overflow="fold")
    for run in found:
        differing = ", ".join(f"{name} {value}" for name, value in run.differing.items())
        scores = f"{run.split} {describe(dict(run.scores))}" if run.split else "none yet"
        updated = f"{run.updated:%Y-%m-%d %H:%M}"
        table.add_row(str(run.path), updated, _state(run), scores, run.fault or differing)
    print_table(table)


def _state(run: RunSummary) -> str:
    if run.state in ("finished", "unreadable"):
        return run.state
    return f"{run.state}, step {run.step:,} of {run.total_steps:,}"
