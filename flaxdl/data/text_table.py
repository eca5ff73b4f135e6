"""A user's own texts: a table with a column of texts and one of labels."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.source import Source, Splits
from flaxdl.data.table_files import read_table
from flaxdl.data.unreadable import Unreadable


@dataclass(frozen=True)
class TextTable(Source):
    """Texts, or pairs of texts, and their classes, in a CSV, TSV, JSON Lines or Parquet file.

    Without files for validation and test, a hash of each text decides to which split it belongs,
    whatever the seed and whatever rows come or go; equal texts stay together. Classes are called
    as the labels are written, and numbered by their order in the alphabet, or by value where all of
    them are whole numbers.
    """

    path: str
    """The file: .csv, .tsv, .jsonl, .json (one object a line) or .parquet."""
    text: str = "text"
    """Column of the texts."""
    label: str = "label"
    """Column of the classes."""
    pair: str | None = None
    """Column of the second texts, where the examples are pairs."""
    validation: str | None = None
    """File to choose by; without one, a part of the training texts is held out."""
    test: str | None = None
    """File that is looked at once; without one, a part of the training texts is held out."""
    validation_fraction: float = 0.1
    """Share of the texts that is held out where there is no file for validation."""
    test_fraction: float = 0.1
    """Share of the texts that is held out where there is no file for the test; 0 for none."""
    max_unreadable: int = 10
    """Broken lines are left out and logged; more than this many are an error."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)

    def load(self, seed: int) -> Splits:
        """Reads the tables.

        Raises:
            ValueError: naming the file and column or lines at fault.
        """
        unreadable = Unreadable(self.max_unreadable, "lines")
        rows = self._read(self.path, unreadable)
        classes = _ordered({row[-1] for row in rows})
        if len(classes) < 2:
            raise ValueError(
                f"{self.path} must have two classes or more in column {self.label!r}, "
                f"has only {', '.join(classes)}"
            )
        parts = self._split(rows)
        for split, path in (("validation", self.validation), ("test", self.test)):
            if path is not None:
                parts[split] = self._read(path, unreadable)
                unknown = {row[-1] for row in parts[split]} - set(classes)
                if unknown:
                    raise ValueError(
                        f"{path} has classes that {self.path} lacks: {', '.join(_ordered(unknown))}"
                    )
        for split, part in parts.items():
            if not part:
                raise ValueError(
                    f"{self.path} has too few rows: none of {len(rows)} falls to the {split} "
                    f"split; add some, or set --data.{split}-fraction"
                )
        missing = set(classes) - {row[-1] for row in parts["train"]}
        if missing:
            raise ValueError(
                f"class {_ordered(missing)[0]} of the {len(classes)} classes in column "
                f"{self.label!r} has too few rows in {self.path}: all are held out"
            )
        datasets = {split: self._dataset(part, classes) for split, part in parts.items()}
        return Splits(datasets["train"], datasets.get("validation"), datasets.get("test"), classes)

    def _split(self, rows: list[list[str]]) -> dict[str, list[list[str]]]:
        fractions = {
            "validation": 0.0 if self.validation else self.validation_fraction,
            "test": 0.0 if self.test else self.test_fraction,
        }
        parts = {"train": [], **{split: [] for split, share in fractions.items() if share > 0}}
        for row in rows:
            parts[split_of("\t".join(row[:-1]), **fractions)].append(row)
        return parts

    def _read(self, path: str, unreadable: Unreadable) -> list[list[str]]:
        """The rows that are complete, each as text, the pair's second text if any, and class."""
        columns = [self.text, *([self.pair] if self.pair else []), self.label]
        rows = []
        for line, values in read_table(path, columns, unreadable):
            faults = [_fault(*field) for field in zip(columns, values, strict=True)]
            faults = [fault for fault in faults if fault]
            if faults:
                where = f"{path}:{line}"
                unreadable.add(where, f"{where} has {'; '.join(faults)}")
            else:
                rows.append([_written(value) for value in values])
        if not rows:
            raise ValueError(f"{path} holds no rows")
        return rows

    def _dataset(self, rows: list[list[str]], classes: Sequence[str]) -> ArrayDataset:
        numbers = {name: number for number, name in enumerate(classes)}
        arrays = {
            "inputs": np.array([row[0] for row in rows], dtype=object),
            "label": np.array([numbers[row[-1]] for row in rows], np.int32),
        }
        if self.pair:
            arrays["pair"] = np.array([row[1] for row in rows], dtype=object)
        return ArrayDataset(arrays)


_Written = str | int | float | Decimal | date  # bool is an int, and datetime a date


def _fault(column: str, value: Any) -> str | None:
    """What a row has in place of a text, if that is so."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"nothing in column {column}"
    if not isinstance(value, _Written):
        kind = type(value).__name__
        return f"a value of type {kind} in column {column}, needed text, a number or a date"
    if isinstance(value, str) and not value.strip():
        return f"an empty text in column {column}"
    return None


def _written(value: _Written) -> str:
    """A value as text; whole numbers as such, though a column with gaps makes them floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, Decimal):  # 2.50 is 2.5, as if it were a float
        value = int(value) if value == int(value) else f"{value:f}".rstrip("0")
    return str(value).encode("utf-8", "replace").decode()  # JSON can hold halves of characters


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Names in their order in the alphabet, or by value where all are whole numbers."""
    names = sorted(names)
    if all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names):
        names.sort(key=int)
    return tuple(names)
