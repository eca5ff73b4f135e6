"""Predictions as a person or a program reads them, on the terminal or in a file."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flaxdl.data.class_folders import printable
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.outputs import writing
from flaxdl.runs.items import Unreadable
from flaxdl.runs.prediction import Prediction, Writing

_WIDEST = 1_000_000  # characters of a line that is not for a terminal
SUFFIXES = (".csv", ".jsonl")

Answer = Prediction | Writing | Unreadable


def print_answers(found: Iterable[Answer], *, as_json: bool = False) -> None:
    """Prints texts as they are, and labels as a table; or one JSON object a line.

    What has no prediction is only part of the JSON.
    """
    table = Table()
    for title in ("input", "label", "probability", "otherwise"):
        table.add_column(title, overflow="fold")
    for one in found:
        if as_json:
            print(json.dumps(_record(one)))
        elif isinstance(one, Writing):
            print(one.text)
        elif isinstance(one, Prediction):
            (label, probability), *others = one.probabilities.items()
            rest = ", ".join(f"{name} {share:.1%}" for name, share in others[:2])
            table.add_row(printable(one.item), label, f"{probability:.1%}", rest)
    if table.row_count:
        print_table(table)


def print_table(table: Table) -> None:
    """Prints a table, on a terminal as wide as that, and elsewhere with nothing cut or wrapped."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDEST
    console.print(table)


def write_answers(found: Iterable[Answer], path: Path, columns: Sequence[str]) -> None:
    """Writes predictions to a CSV or JSON Lines file, whole or not at all.

    Args:
        found: the predictions, which are written one by one.
        path: the file, with one of `SUFFIXES`.
        columns: of a CSV file; JSON Lines have everything, such as the probability of each class.

    Raises:
        UserError: if the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not every name of a file is Unicode.
        with (
            atomic_write(path) as new,
            new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            if path.suffix.lower() == ".jsonl":
                file.writelines(f"{json.dumps(_record(one))}\n" for one in found)
            else:
                rows = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                rows.writeheader()
                rows.writerows(_record(one) for one in found)


def _record(one: Answer) -> dict[str, Any]:
    if not isinstance(one, Prediction):
        return dataclasses.asdict(one)
    probability = one.probabilities[one.label]
    return {"label": one.label, "probability": probability, **dataclasses.asdict(one)}
