"""`course`: the measured claims of the course."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from flaxdl.cli.printing import print_table
from flaxdl.course import CHAPTERS, EXPERIMENTS, record
from flaxdl.course.experiment import load_experiment
from flaxdl.errors import UserError


def main(arguments: Sequence[str], program: str) -> None:
    """List the measured claims of the course, or measure one of them."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None,
    quick: bool = False,
    all_claims: Annotated[bool, tyro.conf.arg(name="all")] = False,
    seeds: tuple[int, ...] | None = None,
    to: Path = Path("course"),
) -> None:
    """List the claims of the course with their recorded verdicts, or measure one of them.

    Measuring a claim prints the verdict with its numbers, and writes the results and a figure to
    NAME.json and NAME.svg.

    Args:
        name: Name of the experiment to run; by default, all are listed.
        quick: Reduce the experiment to a first impression of a minute or less.
        all_claims: Run all experiments without results in the folder. To resume, run the same
            command.
        seeds: Seeds to measure; by default, those of the recorded results.
        to: Folder for results and figures.
    """
    if all_claims and name is not None:
        raise UserError(f"--all runs every experiment; omit the name {name!r}")
    if all_claims:
        for one in EXPERIMENTS:
            found = record.read(one, to)
            if found is None or (found.quick and not quick):
                _run(one, quick=quick, seeds=seeds, to=to)
            else:
                print(f"{one}: {found.verdict.outcome} (measured on {found.date})", flush=True)
    elif name is None:
        _print_claims()
    else:
        _run(name, quick=quick, seeds=seeds, to=to)


def _print_claims() -> None:
    table = Table()
    for title in ("name", "claim", "verdict"):
        table.add_column(title, overflow="fold")
    for chapter, names in CHAPTERS.items():
        table.add_section()
        table.add_row("", chapter, "")
        for name in names:
            recorded = record.read(name)
            verdict = "not recorded" if recorded is None else recorded.verdict.outcome
            table.add_row(name, load_experiment(name).CLAIM, verdict)
    print_table(table)


def _run(name: str, *, quick: bool, seeds: tuple[int, ...] | None, to: Path) -> None:
    experiment = load_experiment(name)
    record.prepare(name, to, quick=quick)
    print(f"{name}: {experiment.CLAIM}", flush=True)
    print(f"  expected: {experiment.EXPECTED}", flush=True)
    result = record.run(name, seeds, quick=quick)
    record.write(name, result, to)
    print(f"  {result.verdict.outcome} ({result.seconds:.0f} s): {result.verdict.reason}")
    if quick:
        print("  A first impression; the verdict needs the whole experiment, without --quick.")
    print(f"  results: {to / name}.json, figure: {to / name}.svg")
