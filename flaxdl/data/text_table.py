"""Source for tables with a column of texts and a column of labels."""

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
from flaxdl.data.class_spellings import class_key, class_names, sort_names
from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.separated_files import check_separator
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.source import Source, Splits
from flaxdl.data.table_files import is_separated, read_table
from flaxdl.data.text_files import check_encoding
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTable(Source):
    """Texts or text pairs with class labels, in a CSV, TSV, JSON Lines or Parquet file.

    Without files for validation and test, a hash of each text determines its split, independent of
    the seed and of other rows; equal texts are in the same split. Class names are the labels
    without surrounding whitespace, in alphabetical order, or by value if all are integers. The
    labels `1` and `1.0` are one class.
    """

    path: str
    """Path of the file: .csv, .tsv, .jsonl, .json (one object per line) or .parquet."""
    text: str = "text"
    """Name of the text column."""
    label: str = "label"
    """Name of the column with the class labels."""
    pair: str | None = None
    """Name of the column with the second texts of text pairs; by default, texts are single."""
    validation: str | None = None
    """Path of the validation file; by default, a fraction of `path` is held out."""
    test: str | None = None
    """Path of the test file, evaluated once, at the end of the run; by default, a fraction of
    `path` is held out."""
    validation_fraction: float = 0.1
    """Fraction of the texts held out for validation if there is no validation file."""
    test_fraction: float = 0.1
    """Fraction of the texts held out for the test if there is no test file; 0 for no test split."""
    max_unreadable: int = 10
    """Maximum number of malformed lines to skip with a warning; more raise an error."""
    separator: str | None = None
    """Separator between fields of delimiter-separated files; by default, a tab in .tsv files and a
    comma in others, or the one in a first line such as `sep=;`."""
    header: bool = True
    """Column names in the first row of delimiter-separated files; without them, columns are
    numbered from 1."""
    encoding: str = "utf-8"
    """Encoding of the text, such as `cp1252`; a byte order mark takes precedence."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)
        check_separator(self.separator)
        check_encoding(self.encoding)
        files = [path for path in (self.path, self.validation, self.test) if path is not None]
        if not any(map(is_separated, files)) and (self.separator is not None or not self.header):
            raise UserError(
                f"separator and header apply only to delimiter-separated files, such as .csv, "
                f"got {self.path!r}"
            )

    def load(self, seed: int) -> Splits:
        """Reads the tables.

        Raises:
            UserError: if a file, column or label is missing or invalid; the message names the file
                and the column or the lines.
        """
        skipped = SkippedExamples(self.max_unreadable, "lines")
        rows = self._read(self.path, skipped)
        names = class_names((row[-1] for row in rows), self.path)
        classes = tuple(names.values())
        if len(classes) < 2:
            raise UserError(
                f"{self.path} must have at least two classes in column {self.label!r}, "
                f"has only {', '.join(classes)}"
            )
        _warn_about_literals(self.path, rows)
        parts = self._split(rows)
        for split, path in (("validation", self.validation), ("test", self.test)):
            if path is not None:
                parts[split] = self._read(path, skipped)
                self._check_known(path, parts[split], names)
                self._warn_about_overlap(path, parts[split], rows)
        self._check_parts(parts, rows, names, classes)
        numbers = {key: number for number, key in enumerate(names)}
        datasets = {split: self._dataset(part, numbers) for split, part in parts.items()}
        return Splits(datasets["train"], datasets.get("validation"), datasets.get("test"), classes)

    def _check_known(self, path: str, rows: list[list[str]], names: Mapping[str, str]) -> None:
        unknown = sort_names({row[-1] for row in rows if class_key(row[-1]) not in names})
        if unknown:
            raise UserError(
                f"{path} has classes that are not in {self.path}: {', '.join(unknown)}"
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
                    f"{self.path} has too few rows: none of {len(rows)} was assigned to the "
                    f"{split} split; add rows or set --data.{split}-fraction"
                )
        missing = set(classes) - {names[class_key(row[-1])] for row in parts["train"]}
        if missing:
            which = "class" if len(missing) == 1 else "classes"
            raise UserError(
                f"{len(missing)} of the {len(classes)} classes in column {self.label!r} of "
                f"{self.path} have too few rows, all of which are held out: {which} "
                f"{', '.join(sort_names(missing))}; add rows, remove these classes, or give files "
                "with --data.validation and --data.test"
            )

    def _warn_about_overlap(
        self, path: str, rows: list[list[str]], training_rows: list[list[str]]
    ) -> None:
        known = {tuple(row[:-1]) for row in training_rows}
        count = sum(tuple(row[:-1]) in known for row in rows)
        if count * 10 >= len(rows):
            _LOGGER.warning(
                "%s of %s texts in %s are also in %s, so scores on them do not measure "
                "generalization",
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
        parts = {
            "train": [],
            **{split: [] for split, fraction in fractions.items() if fraction > 0},
        }
        for row in rows:
            parts[split_of("\t".join(row[:-1]), **fractions)].append(row)
        return parts

    def _read(self, path: str, skipped: SkippedExamples) -> list[list[str]]:
        """Returns the valid rows, each with text, second text (for text pairs) and label."""
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
            errors = [_find_error(*field) for field in zip(columns, values, strict=True)]
            errors = [error for error in errors if error]
            if errors:
                broken[line] = f"has {'; '.join(errors)}"
            else:
                rows.append([_written(value) for value in values])
        self._count_broken(path, broken, len(rows) + len(broken), skipped)
        if not rows:
            raise UserError(f"{path} has no valid rows")
        return rows

    def _count_broken(
        self, path: str, broken: Mapping[int, str], total: int, skipped: SkippedExamples
    ) -> None:
        reasons = [f"{path}:{line} {reason}" for line, reason in sorted(broken.items())]
        if len(reasons) > self.max_unreadable:
            shown = reasons[: self.max_unreadable + 1]
            raise UserError(
                f"{len(reasons):,} lines cannot be read, more than max_unreadable = "
                f"{self.max_unreadable}, of {total:,} in {path}; to skip them, set "
                f"--data.max-unreadable {len(reasons)}:\n  " + "\n  ".join(shown)
            )
        for line, reason in zip(sorted(broken), reasons, strict=True):
            skipped.add(f"{path}:{line}", reason)

    def _decoded(self, value: Any) -> Any:
        """Decodes bytes if possible, since Parquet files may store text as bytes."""
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


def _warn_about_literals(path: str, rows: list[list[str]]) -> None:
    """Warns about texts such as `b'good'`, the result of calling `str` on bytes."""
    found = [row[0] for row in rows if re.fullmatch(r"b'.*'|b\".*\"", row[0], re.DOTALL)]
    if 2 * len(found) > len(rows):
        _LOGGER.warning(
            "%s of %s texts in %s are printed Python bytes, such as %.40s; decode the bytes "
            "before writing the table",
            f"{len(found):,}",
            f"{len(rows):,}",
            path,
            found[0],
        )


_Written = str | int | float | Decimal | date  # bool is an int, and datetime a date


def _find_error(column: str, value: Any) -> str | None:
    """Describes why a value is invalid, or returns None if it can be converted to text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"no value in column {column}"
    if isinstance(value, bytes):
        return f"bytes that are not text in column {column}"
    if not isinstance(value, _Written):
        kind = type(value).__name__
        return f"a value of type {kind} in column {column}, must be text, a number or a date"
    if isinstance(value, str) and not value.strip():
        return f"an empty text in column {column}"
    return None


def _written(value: _Written) -> str:
    """Converts a value to text, and whole floats to text without decimals.

    Columns with missing values store integers as floats.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, Decimal):  # 2.50 becomes 2.5, as for floats
        value = int(value) if value == int(value) else f"{value:f}".rstrip("0")
    return str(value).encode("utf-8", "replace").decode()  # JSON may contain lone surrogates
