"""Source for tables with a column of texts and a column of labels."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.label_columns import LabelColumns, label_columns
from flaxdl.data.separated_files import check_separator
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.source import Source, Splits
from flaxdl.data.table_files import is_separated
from flaxdl.data.table_rows import (
    Row,
    check_known,
    check_parts,
    count_broken,
    labels_of,
    read_rows,
    weights_of,
    without_missing_labels,
)
from flaxdl.data.text_files import check_encoding
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTable(Source):
    """Texts or text pairs with class labels or numbers, in a CSV, TSV, JSON Lines or Parquet file.

    Without files for validation and test, a hash of each text determines its split, independent of
    the seed and of other rows; equal texts are in the same split. Class names are the labels
    without surrounding whitespace, in alphabetical order, or by value if all are integers. The
    labels `1` and `1.0` are one class.
    """

    path: str
    """Path or URL of the file: .csv, .tsv, .jsonl, .json (one object per line) or .parquet."""
    text: str = "text"
    """Name of the text column."""
    label: str = "label"
    """Name of the column with the class labels."""
    pair: str | None = None
    """Name of the column with the second texts of text pairs; by default, texts are single."""
    weight: str | None = None
    """Name of the column with the weight of each text in the training loss, at least 0; by default,
    all weights are 1. Texts of weight 0 are left out of evaluation too; files for validation and
    test need no weights."""
    targets: tuple[str, ...] = ()
    """Names of numeric columns that replace `label`: 0, 1 or empty for several classes per text
    (multi-label classification), or any numbers (regression). Empty cells, NaN, NA, n/a, null and
    none are missing values, true is 1 and false is 0; rows without any value are dropped with a
    warning."""
    label_separator: str | None = None
    """Separator of several class labels in the label column, such as `|` (multi-label
    classification); an empty cell then means that no class applies."""
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
        self._label_columns()
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
        rows = self._read(self.path, skipped, weight=self.weight)
        labels = self._label_columns()
        names = labels.find_names(self.path, [row.label for row in rows])
        _warn_about_literals(self.path, rows)
        parts = self._split(rows)
        for split, path in (("validation", self.validation), ("test", self.test)):
            if path is not None:
                parts[split] = self._read(path, skipped)
                check_known(path, parts[split], names, labels=labels, known_from=self.path)
                self._warn_about_overlap(path, parts[split], rows)
        remedy = "give files with --data.validation and --data.test"
        check_parts(self.path, rows, parts, names, labels=labels, weight=self.weight, remedy=remedy)
        datasets = {split: self._dataset(part, names) for split, part in parts.items()}
        return Splits(
            datasets["train"],
            datasets.get("validation"),
            datasets.get("test"),
            tuple(names.values()),
        )

    def _label_columns(self) -> LabelColumns:
        return label_columns(self.label, self.targets, self.label_separator)

    def _warn_about_overlap(self, path: str, rows: list[Row], training_rows: list[Row]) -> None:
        known = {tuple(row.values) for row in training_rows}
        count = sum(tuple(row.values) in known for row in rows)
        if count * 10 >= len(rows):
            _LOGGER.warning(
                "%s of %s texts in %s are also in %s, so scores on them do not measure "
                "generalization",
                f"{count:,}",
                f"{len(rows):,}",
                path,
                self.path,
            )

    def _split(self, rows: list[Row]) -> dict[str, list[Row]]:
        fractions = {
            "validation": 0.0 if self.validation else self.validation_fraction,
            "test": 0.0 if self.test else self.test_fraction,
        }
        parts = {
            "train": [],
            **{split: [] for split, fraction in fractions.items() if fraction > 0},
        }
        for row in rows:
            parts[split_of("\t".join(row.values), **fractions)].append(row)
        return parts

    def _read(self, path: str, skipped: SkippedExamples, weight: str | None = None) -> list[Row]:
        """Returns the valid rows, each with text and second text (for text pairs)."""
        labels = self._label_columns()
        rows, broken = read_rows(
            path,
            [self.text, *([self.pair] if self.pair else [])],
            labels,
            weight=weight,
            separator=self.separator,
            header=self.header,
            encoding=self.encoding,
        )
        total = len(rows) + len(broken)
        count_broken(path, broken, total=total, skipped=skipped, max_unreadable=self.max_unreadable)
        if not rows:
            raise UserError(f"{path} has no valid rows")
        return without_missing_labels(path, rows, labels)

    def _dataset(self, rows: list[Row], names: Mapping[str, str]) -> ArrayDataset:
        arrays = {
            "inputs": np.array([row.values[0] for row in rows], dtype=object),
            "label": labels_of(rows, names, self._label_columns()),
        }
        if self.pair:
            arrays["pair"] = np.array([row.values[1] for row in rows], dtype=object)
        if self.weight is not None:
            arrays["weight"] = weights_of(rows)
        return ArrayDataset(arrays)


def _warn_about_literals(path: str, rows: list[Row]) -> None:
    """Warns about texts such as `b'good'`, the result of calling `str` on bytes."""
    texts = (row.values[0] for row in rows)
    found = [text for text in texts if re.fullmatch(r"b'.*'|b\".*\"", text, re.DOTALL)]
    if 2 * len(found) > len(rows):
        _LOGGER.warning(
            "%s of %s texts in %s are printed Python bytes, such as %.40s; decode the bytes "
            "before writing the table",
            f"{len(found):,}",
            f"{len(rows):,}",
            path,
            found[0],
        )
