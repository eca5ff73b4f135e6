"""Output of predictions as tables, text, CSV and JSON."""

import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flaxdl.data.class_folders import printable
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.outputs import writing
from flaxdl.report.charts import number
from flaxdl.runs.forecasts import Forecast
from flaxdl.runs.items import SkippedItem
from flaxdl.runs.multi_label import MultiLabelPrediction
from flaxdl.runs.prediction import Generation, Prediction
from flaxdl.runs.regression import Estimate

_UNLIMITED_WIDTH = 1_000_000  # characters per line if the output is not a terminal
SUFFIXES = (".csv", ".jsonl")

Answer = Prediction | MultiLabelPrediction | Generation | Forecast | Estimate | SkippedItem


def print_answers(found: Iterable[Answer], *, as_json: bool = False) -> None:
    """Prints generated texts unchanged, and other predictions as tables, or all as JSON Lines.

    Items that could not be read are included only in JSON Lines.
    """
    table = Table()
    for title in ("input", "label", "probability", "otherwise"):
        table.add_column(title, overflow="fold")
    estimates: Table | None = None
    labels = Table()
    for title in ("input", "labels", "below threshold"):
        labels.add_column(title, overflow="fold")
    for one in found:
        if as_json:
            print(json.dumps(_record(one)))
        elif isinstance(one, Generation):
            print(one.text)
        elif isinstance(one, Forecast):
            print_table(_table(one))
        elif isinstance(one, Estimate):
            estimates = estimates or Table("input", *one.values)
            estimates.add_row(printable(one.item), *map(number, one.values.values()))
        elif isinstance(one, Prediction):
            (label, probability), *others = one.probabilities.items()
            rest = ", ".join(f"{name} {other:.1%}" for name, other in others[:2])
            table.add_row(printable(one.item), label, f"{probability:.1%}", rest)
        elif isinstance(one, MultiLabelPrediction):
            labels.add_row(printable(one.item), *_labels(one))
    for filled in (table, labels, estimates):
        if filled is not None and filled.row_count:
            print_table(filled)


def _labels(one: MultiLabelPrediction) -> tuple[str, str]:
    """Returns the labels, and the most probable of the other classes, with probabilities."""
    others = [name for name in one.probabilities if name not in one.labels][:2]
    labels, rest = (
        ", ".join(f"{name} {one.probabilities[name]:.1%}" for name in names)
        for names in (one.labels, others)
    )
    return labels or "none", rest


def _table(forecast: Forecast) -> Table:
    rows = forecast.rows()
    table = Table(*rows[0], title=printable(forecast.item))
    for row in rows:
        table.add_row(*(x if isinstance(x, str) else f"{x:.6g}" for x in row.values()))
    return table


def print_table(table: Table) -> None:
    """Prints a table that fits the terminal; piped output is neither truncated nor wrapped."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _UNLIMITED_WIDTH
    console.print(table)


def write_answers(found: Iterable[Answer], path: Path, columns: Sequence[str]) -> None:
    """Writes predictions to a CSV or JSON Lines file, atomically.

    Args:
        found: predictions, consumed one at a time.
        path: path of the file, with a suffix from `SUFFIXES`.
        columns: columns of a CSV file, in which a forecast has a row per step, and several labels
            are separated by `|`; JSON Lines files contain all fields, such as the probability of
            each class.

    Raises:
        UserError: if the file cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # File names need not be valid Unicode.
        with (
            atomic_write(path) as new,
            new.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            if path.suffix.lower() == ".jsonl":
                file.writelines(f"{json.dumps(_record(one))}\n" for one in found)
            else:
                rows = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                rows.writeheader()
                for one in found:
                    rows.writerows(_rows(one))


def _rows(one: Answer) -> Sequence[Mapping[str, Any]]:
    """Returns the rows of a CSV file."""
    if isinstance(one, Forecast):
        return one.rows()
    if isinstance(one, Estimate):
        return [{"item": one.item, **one.values}]
    if isinstance(one, MultiLabelPrediction):
        return [{**_record(one), "labels": "|".join(one.labels)}]
    return [_record(one)]


def _record(one: Answer) -> dict[str, Any]:
    if not isinstance(one, Prediction):
        return dataclasses.asdict(one)
    probability = one.probabilities[one.label]
    return {"label": one.label, "probability": probability, **dataclasses.asdict(one)}
