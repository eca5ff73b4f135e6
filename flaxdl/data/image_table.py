"""Source for images listed in a table, with a column of paths and a column of labels."""

import logging
import os
import posixpath
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from flaxdl.data.class_folders import to_nfc
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.image_dataset import ImageDataset
from flaxdl.data.label_columns import LabelColumns, label_columns
from flaxdl.data.separated_files import check_separator
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.source import Source, Splits
from flaxdl.data.split_folders import split_named
from flaxdl.data.table_files import is_separated
from flaxdl.data.table_rows import (
    Row,
    check_parts,
    count_broken,
    labels_of,
    read_rows,
    weights_of,
    without_missing_labels,
)
from flaxdl.data.text_files import check_encoding
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path
from flaxdl.filesystem.paths import local_path, relative_path
from flaxdl.filesystem.remote_urls import is_url

_LOGGER = logging.getLogger(__name__)
_SHOWN = 10  # lines in a message


@dataclass(frozen=True)
class ImageTable(Source):
    """Images listed in a CSV, TSV, JSON Lines or Parquet file, with class labels or numbers.

    The paths are relative to the folder of the table, or to `root`; they may also be absolute, and
    separated by slashes or backslashes. Without a split column, a hash of each path, relative to
    that folder, determines its split, independent of the seed and of other rows. Class names are
    the labels, as in `TextTable`. Images may differ in size and format, as in `ImageFolder`.

    Rows that repeat an image are dropped with a warning if they agree in all columns.
    """

    path: str
    """Path or URL of the file: .csv, .tsv, .jsonl, .json (one object per line) or .parquet."""
    image: str = "path"
    """Name of the column with the paths of the images."""
    label: str = "label"
    """Name of the column with the class labels."""
    split: str | None = None
    """Name of the column with the splits: train (or training), val (valid, validation, dev, eval)
    or test (testing), ignoring case; by default, fractions are held out."""
    weight: str | None = None
    """Name of the column with the weight of each image in the training loss, at least 0; by
    default, all weights are 1. Images of weight 0 are left out of evaluation too."""
    targets: tuple[str, ...] = ()
    """Names of numeric columns that replace `label`: 0, 1 or empty for several classes per image
    (multi-label classification), or any numbers (regression). Empty cells, NaN, NA, n/a, null and
    none are missing values, true is 1 and false is 0; rows without any value are dropped with a
    warning."""
    label_separator: str | None = None
    """Separator of several class labels in the label column, such as `|` (multi-label
    classification); an empty cell then means that no class applies."""
    root: str | None = None
    """Folder that the paths are relative to; by default, that of the table."""
    validation_fraction: float = 0.1
    """Fraction of the training images held out for validation if the split column has no `val`."""
    test_fraction: float = 0.1
    """Fraction of all images held out for the test if there is no split column; 0 for no test."""
    channels: int = 3
    """Number of channels: 3 for RGB, 1 for grayscale."""
    max_unreadable: int = 10
    """Maximum number of malformed lines, missing and unreadable files to skip with a warning; more
    raise an error."""
    separator: str | None = None
    """Separator between fields of delimiter-separated files; by default, a tab in .tsv files and a
    comma in others, or the one in a first line such as `sep=;`."""
    header: bool = True
    """Column names in the first row of delimiter-separated files; without them, columns are
    numbered from 1."""
    encoding: str = "utf-8"
    """Encoding of the file, such as `cp1252`; a byte order mark takes precedence."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)
        check_separator(self.separator)
        check_encoding(self.encoding)
        self._label_columns()
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")
        if not is_separated(self.path) and (self.separator is not None or not self.header):
            raise UserError(
                f"separator and header apply only to delimiter-separated files, such as .csv, "
                f"got {self.path!r}"
            )

    def load(self, seed: int) -> Splits:
        """Reads the table, but not the images.

        Raises:
            UserError: if the table, a column, a label, a split or too many images are missing or
                invalid; the message contains the lines.
        """
        root = input_path(self._folder if self.root is None else self.root)
        if self.root is not None and not root.is_dir():
            raise UserError(f"root: no such folder: {self.root}")
        skipped = SkippedExamples(self.max_unreadable, "images")
        rows = self._read(str(root), skipped)
        labels = self._label_columns()
        names = labels.find_names(self.path, [row.label for row in rows])
        parts = self._split(rows)
        remedy = "assign training rows in a split column (--data.split)"
        check_parts(self.path, rows, parts, names, labels=labels, weight=self.weight, remedy=remedy)
        datasets = {
            split: ImageDataset(
                [os.path.join(root, row.values[0]) for row in part],
                labels_of(part, names, labels),
                root,
                channels=self.channels,
                skipped=skipped,
                weights=None if self.weight is None else weights_of(part),
                labels_in_paths=False,
            )
            for split, part in parts.items()
        }
        return Splits(
            datasets["train"],
            datasets.get("validation"),
            datasets.get("test"),
            tuple(names.values()),
        )

    @property
    def _folder(self) -> str:
        """Path or URL of the folder of the table."""
        if is_url(self.path):
            return self.path.rpartition("/")[0]
        return str(local_path(self.path).parent)

    def _label_columns(self) -> LabelColumns:
        return label_columns(self.label, self.targets, self.label_separator)

    def _read(self, root: str, skipped: SkippedExamples) -> list[Row]:
        """Returns the rows of existing images: path relative to `root`, and split (if any)."""
        labels = self._label_columns()
        rows, broken = read_rows(
            self.path,
            [self.image, *([self.split] if self.split else [])],
            labels,
            weight=self.weight,
            separator=self.separator,
            header=self.header,
            encoding=self.encoding,
        )
        total = len(rows) + len(broken)
        found = []
        for row in rows:
            name = _relative(row.values[0], root)
            if os.path.isfile(os.path.join(root, name)):
                found.append(row._replace(values=[name, *row.values[1:]]))
            else:
                broken[row.line] = f"lists {row.values[0]}, which is not a file"
        where = ""
        if rows and not found:
            where = f" (paths are relative to {root}; --data.root sets another folder)"
        count_broken(
            self.path,
            broken,
            total=total,
            skipped=skipped,
            max_unreadable=self.max_unreadable,
            hint=where,
        )
        if not rows:
            raise UserError(f"{self.path} has no valid rows")
        if not found:
            raise UserError(f"{self.path} lists no images that exist{where}")
        return without_missing_labels(self.path, self._without_repetitions(found, labels), labels)

    def _without_repetitions(self, rows: Sequence[Row], labels: LabelColumns) -> list[Row]:
        """Drops rows that repeat an earlier one, with a warning.

        Raises:
            UserError: if two rows for one image differ.
        """
        first: dict[str, Row] = {}
        for row in rows:
            earlier = first.setdefault(to_nfc(row.values[0]), row)
            if _content(earlier, labels) != _content(row, labels):
                shown = (f"line {one.line} {_shown(one, labels)}" for one in (earlier, row))
                raise UserError(
                    f"{self.path} lists {row.values[0]} twice, with different values: "
                    f"{' and '.join(shown)}"
                )
        if len(first) < len(rows):
            _LOGGER.warning(
                "%s: dropped %s rows that repeat an image",
                self.path,
                f"{len(rows) - len(first):,}",
            )
        return list(first.values())

    def _split(self, rows: Sequence[Row]) -> dict[str, list[Row]]:
        """Assigns the rows to splits, by the split column or by a hash of the paths."""
        if self.split is None:
            return _by_hash(rows, self.validation_fraction, self.test_fraction)
        parts: dict[str, list[Row]] = {"train": []}
        unknown = []
        for row in rows:
            split = split_named(row.values[1].strip())
            if split is None:
                unknown.append(f"{row.values[1]!r} in line {row.line}")
            else:
                parts.setdefault(split, []).append(row)
        if unknown:
            more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
            raise UserError(
                f"column {self.split!r} of {self.path} must contain train, val (or validation) or "
                f"test, got {', '.join(unknown[:_SHOWN])}{more}"
            )
        if not parts["train"]:
            raise UserError(
                f"no row of {self.path} has 'train' in column {self.split!r}, only "
                f"{', '.join(sorted(parts.keys() - {'train'}))}"
            )
        if "validation" not in parts:
            parts |= _by_hash(parts["train"], self.validation_fraction, 0.0)
        return parts


def _by_hash(rows: Sequence[Row], validation: float, test: float) -> dict[str, list[Row]]:
    fractions = {"train": 1.0, "validation": validation, "test": test}
    parts = {split: [] for split, fraction in fractions.items() if fraction > 0}
    for row in rows:
        parts[split_of(to_nfc(row.values[0]), validation, test)].append(row)
    return parts


def _relative(path: str, root: str) -> str:
    """Returns a path relative to `root`, with forward slashes and without `.` and inner `..`."""
    path = path.strip().replace("\\", "/")
    if os.path.isabs(path):
        path = relative_path(path, root)
    return posixpath.normpath(path)


def _content(row: Row, labels: LabelColumns) -> tuple[Hashable, ...]:
    """Returns what rows of one image must have in common."""
    return (*row.values[1:], labels.content(row.label), row.weight)


def _shown(row: Row, labels: LabelColumns) -> str:
    values = ", ".join([*row.values[1:], labels.shown(row.label)])
    return f"({values})" if row.weight == 1 else f"({values}, weight {row.weight:g})"
