"""A user's own texts: a table with a column of texts and one of labels."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.class_spellings import class_key, class_names, ordered
from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.separated_files import check_separator
from flaxdl.data.source import Source, Splits
from flaxdl.data.table_files import is_separated, read_table
from flaxdl.data.text_files import check_encoding
from flaxdl.data.unreadable import Unreadable
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTable(Source):
    """Texts, or pairs of texts, and their classes, in a CSV, TSV, JSON Lines or Parquet file.

    Without files for validation and test, a hash of each text decides to which split it belongs,
    whatever the seed and whatever rows come or go; equal texts stay together. Classes are called
    as the labels are written, without blanks at their ends, and numbered by their order in the
    alphabet, or by value where all of them are whole numbers; `1` and `1.0` are one class.
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
    separator: str | None = None
    """Character between the fields of separated files; by default a tab in .tsv files and a comma
    in others, or what a first line such as `sep=;` says."""
    header: bool = True
    """Whether the first row of separated files names the columns; without one, columns are called
    by their numbers, from 1 on."""
    encoding: str = "utf-8"
    """Encoding of the text, such as `cp1252`; a byte order mark takes precedence."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)
        check_separator(self.separator)
        check_encoding(self.encoding)
        files = [path for path in (self.path, self.validation, self.test) if path is not None]
        if not any(map(is_separated, files)) and (self.separator is not None or not self.header):
            raise UserError(
                f"separator and header are for separated files, such as .csv, got {self.path!r}"
            )

    def load(self, seed: int) -> Splits:
        """Reads the tables.

        Raises:
            UserError: naming the file and column or lines at fault.
        """
        unreadable = Unreadable(self.max_unreadable, "lines")
        rows = self._read(self.path, unreadable)
        names = class_names((row[-1] for row in rows), self.path)
        classes = tuple(names.values())
        if len(classes) < 2:
            raise UserError(
                f"{self.path} must have two classes or more in column {self.label!r}, "
                f"has only {', '.join(classes)}"
            )
        _warn_of_literals(self.path, rows)
        parts = self._split(rows)
        for split, path in (("validation", self.validation), ("test", self.test)):
            if path is not None:
                parts[split] = self._read(path, unreadable)
                self._check_known(path, parts[split], names)
                self._warn_of_overlap(path, parts[split], rows)
        self._check_parts(parts, rows, names, classes)
        numbers = {key: number for number, key in enumerate(names)}
        datasets = {split: self._dataset(part, numbers) for split, part in parts.items()}
        return Splits(datasets["train"], datasets.get("validation"), datasets.get("test"), classes)

    def _check_known(self, path: str, rows: list[list[str]], names: Mapping[str, str]) -> None:
        unknown = ordered({row[-1] for row in rows if class_key(row[-1]) not in names})
        if unknown:
            raise UserError(
                f"{path} has classes that {self.path} lacks: {', '.join(unknown)}"
                f"{did_you_mean(unknown[0], names.values())}"
            )

    def _check_parts(
        self,
        parts: Mapping[str, list[list[str]]],
        rows: list[list[str]],
        names: Mapping[str, str],
        classes: Sequence[str],
    ) -> None:
        for split, part in parts.items():
            if not part:
                raise UserError(
                    f"{self.path} has too few rows: none of {len(rows)} falls to the {split} "
                    f"split; add some, or set --data.{split}-fraction"
                )
        missing = set(classes) - {names[class_key(row[-1])] for row in parts["train"]}
        if missing:
            which = "class" if len(missing) == 1 else "classes"
            raise UserError(
                f"{len(missing)} of the {len(classes)} classes in column {self.label!r} of "
                f"{self.path} have too few rows, all of which are held out: {which} "
                f"{', '.join(ordered(missing))}; add rows, leave these out, or name files for "
                "--data.validation and --data.test"
            )

    def _warn_of_overlap(
        self, path: str, rows: list[list[str]], training_rows: list[list[str]]
    ) -> None:
        known = {tuple(row[:-1]) for row in training_rows}
        count = sum(tuple(row[:-1]) in known for row in rows)
        if count * 10 >= len(rows):
            _LOGGER.warning(
                "%s of %s texts in %s are in %s too, so its scores say little about new texts",
                f"{count:,}",
                f"{len(rows):,}",
                path,
                self.path,
            )

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
        """The rows that are complete, each as text, the pair's second text if any, and label."""
        columns = [self.text, *([self.pair] if self.pair else []), self.label]
        good, broken = read_table(
            path,
            columns,
            separator=self.separator,
            header=self.header,
            encoding=self.encoding,
        )
        rows = []
        for line, values in good:
            values = [self._decoded(value) for value in values]
            faults = [_fault(*field) for field in zip(columns, values, strict=True)]
            faults = [fault for fault in faults if fault]
            if faults:
                broken[line] = f"has {'; '.join(faults)}"
            else:
                rows.append([_written(value) for value in values])
        self._count_broken(path, broken, len(rows) + len(broken), unreadable)
        if not rows:
            raise UserError(f"{path} holds no rows")
        return rows

    def _count_broken(
        self, path: str, broken: Mapping[int, str], total: int, unreadable: Unreadable
    ) -> None:
        reasons = [f"{path}:{line} {reason}" for line, reason in sorted(broken.items())]
        if len(reasons) > self.max_unreadable:
            shown = reasons[: self.max_unreadable + 1]
            raise UserError(
                f"{len(reasons):,} lines cannot be read, more than max_unreadable = "
                f"{self.max_unreadable}, of {total:,} in {path}; to leave them out, set "
                f"--data.max-unreadable {len(reasons)}:\n  " + "\n  ".join(shown)
            )
        for line, reason in zip(sorted(broken), reasons, strict=True):
            unreadable.add(f"{path}:{line}", reason)

    def _decoded(self, value: Any) -> Any:
        """Bytes as text, where they are; Parquet files may hold texts as bytes."""
        if not isinstance(value, bytes):
            return value
        try:
            return value.decode(self.encoding)
        except UnicodeError:
            return value

    def _dataset(self, rows: list[list[str]], numbers: Mapping[str, int]) -> ArrayDataset:
        arrays = {
            "inputs": np.array([row[0] for row in rows], dtype=object),
            "label": np.array([numbers[class_key(row[-1])] for row in rows], np.int32),
        }
        if self.pair:
            arrays["pair"] = np.array([row[1] for row in rows], dtype=object)
        return ArrayDataset(arrays)


def _warn_of_literals(path: str, rows: list[list[str]]) -> None:
    """Warns of texts such as `b'good'`, which Python makes of bytes that are written as text."""
    found = [row[0] for row in rows if re.fullmatch(r"b'.*'|b\".*\"", row[0], re.DOTALL)]
    if 2 * len(found) > len(rows):
        _LOGGER.warning(
            "%s of %s texts in %s are Python's notation of bytes, such as %.40s; "
            "decode them before the table is written",
            f"{len(found):,}",
            f"{len(rows):,}",
            path,
            found[0],
        )


_Written = str | int | float | Decimal | date  # bool is an int, and datetime a date


def _fault(column: str, value: Any) -> str | None:
    """What a row has in place of a text, if that is so."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"nothing in column {column}"
    if isinstance(value, bytes):
        return f"bytes that are no text in column {column}"
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
