"""Source for images in Parquet files, as on the Hugging Face hub."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxdl.data.class_folders import format_names
from flaxdl.data.columns import find_columns
from flaxdl.data.hash_split import check_fractions
from flaxdl.data.labels import as_classes
from flaxdl.data.parquet_images import ParquetImages, RowGroup, RowGroupCache
from flaxdl.data.shuffling import CACHED_GROUPS
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.data.split_folders import split_named
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_LOGGER = logging.getLogger(__name__)
_MUCH_MEMORY = 2**31  # bytes per process


@dataclass(frozen=True)
class ImageParquet(Source):
    """Images in Parquet files, with class labels, as data sets on the Hugging Face hub store them.

    The image column contains structs with a field `bytes`, or bytes: the contents of image files.
    Labels are names, or numbers of classes from 0; the names of numbered classes are those that
    Hugging Face's `datasets` writes into the files.

    The split of a file is the first word of its name (`train-00000-of-00002.parquet`) or the name
    of its folder (`train/0000.parquet`): train (or training), val (valid, validation, dev, eval) or
    test (testing); other files are for training. A test split without labels, all of which are -1,
    is left out with a warning.

    Only labels are read in advance. Each epoch shuffles the row groups, and the images within
    windows of 16 row groups. Each process keeps up to 32 row groups in memory.
    """

    path: str
    """Path or URL of a Parquet file, or of a folder that is searched for them."""
    image: str = "image"
    """Name of the image column."""
    label: str = "label"
    """Name of the column with the class labels."""
    validation_fraction: float = 0.1
    """Fraction of the training images held out for validation if there are no files for it."""
    channels: int = 3
    """Number of channels: 3 for RGB, 1 for grayscale."""
    max_unreadable: int = 10
    """Maximum number of unreadable images to skip with a warning; more raise an error."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, 0.0)
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")

    def load(self, seed: int) -> Splits:
        """Reads the labels, but not the images.

        Raises:
            UserError: if there are no files, or if a file, a column or a label is missing or
                invalid; the message names the file.
        """
        root, parts = self._files()
        tables = {
            split: [_read(file, self.image, self.label) for file in files]
            for split, files in parts.items()
        }
        names = _common_names(tables, self.label)
        if "test" in tables and all(np.all(table.labels == -1) for table in tables["test"]):
            _LOGGER.warning("the test files in %s have no labels, only -1; unused", self.path)
            del tables["test"]
        labels = {
            f"column {self.label!r} of the {split} files": np.concatenate([t.labels for t in found])
            for split, found in tables.items()
        }
        classes = as_classes(labels, names)
        skipped, cache = SkippedExamples(self.max_unreadable, "images"), RowGroupCache()
        groups = {
            split: [group for table in found for group in table.groups]
            for split, found in tables.items()
        }
        _warn_about_memory(self.path, [one for of_split in groups.values() for one in of_split])
        datasets = {
            split: ParquetImages(
                groups[split],
                of_split,
                root,
                column=self.image,
                channels=self.channels,
                skipped=skipped,
                cache=cache,
            )
            for split, of_split in zip(tables, classes.labels.values(), strict=True)
        }
        datasets["train"].label_error = classes.error
        train, validation = datasets["train"], datasets.get("validation")
        if validation is None:
            train, validation = hold_out(train, fraction=self.validation_fraction, seed=seed)
        return Splits(train, validation, datasets.get("test"), classes.names)

    def _files(self) -> tuple[Path, dict[str, list[Path]]]:
        """Returns the folder of the files, and the files by split, `train` first.

        Raises:
            UserError: if there are no files, or none for training.
        """
        path = input_path(self.path)
        if path.is_file():
            return path.parent, {"train": [path]}
        if not path.is_dir():
            raise UserError(f"no such file or folder: {self.path}")
        parts: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
        files = {
            file: _split_of(file.relative_to(path)) for file in sorted(path.rglob("*.parquet"))
        }
        for file, split in files.items():
            parts[split or "train"].append(file)
        if not files:
            raise UserError(f"{self.path} contains no .parquet files")
        without = [file.relative_to(path).as_posix() for file, split in files.items() if not split]
        if 0 < len(without) < len(files):
            _LOGGER.warning(
                "%s of %s files in %s have no split in their names and are used for training: %s",
                len(without),
                len(files),
                self.path,
                format_names(without),
            )
        if not parts["train"]:
            raise UserError(
                f"{self.path} contains no .parquet files for training, only for "
                f"{' and '.join(split for split, files in parts.items() if files)}"
            )
        return path, {split: files for split, files in parts.items() if files}


@dataclass(frozen=True)
class _Table:
    """Labels and row groups of a Parquet file."""

    file: Path
    labels: np.ndarray
    """Labels, int[N] or texts [N]."""
    names: tuple[str, ...] | None
    """Names of numbered classes; None if the file does not contain them."""
    groups: Sequence[RowGroup]


def _read(path: Path, image: str, label: str) -> _Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            places = find_columns(path, [image, label], schema.names)
            image, label = (schema.names[place] for place in places)
            _check_image_column(path, image, schema.field(image).type)
            column = file.read(columns=[label]).column(label)
            names = _class_names(schema.metadata, label)
            groups = _row_groups(path, file, image)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as a Parquet file: {error}") from error
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise UserError(
            f"column {label!r} of {path} must have a label in each row, has {column.null_count:,} "
            f"rows without one, the first is {row}"
        )
    kind = column.type
    if not (pyarrow.types.is_integer(kind) or _is_text(kind)):
        raise UserError(
            f"column {label!r} of {path} must contain class names or class numbers, has type {kind}"
        )
    values = np.array(column.to_pylist(), dtype=object if _is_text(kind) else np.int64)
    return _Table(path, values, names, groups)


def _check_image_column(path: Path, column: str, kind: Any) -> None:
    import pyarrow

    is_struct = pyarrow.types.is_struct(kind)
    if is_struct:
        place = kind.get_field_index("bytes")
        content = kind.field(place).type if place >= 0 else pyarrow.null()
    else:
        content = kind
    if not (pyarrow.types.is_binary(content) or pyarrow.types.is_large_binary(content)):
        raise UserError(
            f"column {column!r} of {path} must contain the contents of image files, as bytes or as "
            f"structs with a field 'bytes', has type {kind}"
        )


def _is_text(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """Returns the names in the metadata of Hugging Face's `datasets`; None if there are none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _row_groups(path: Path, file: "ParquetFile", image: str) -> list[RowGroup]:
    groups, first = [], 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        size = group.num_rows
        groups.append(RowGroup(str(path), number, first, size, _image_bytes(group, image)))
        first += size
    return groups


def _image_bytes(group: Any, image: str) -> int:
    """Returns the size of the image column in a row group, uncompressed."""
    columns = (group.column(place) for place in range(group.num_columns))
    return sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema.split(".")[0] == image
    )


def _split_of(name: Path) -> str | None:
    """Returns the split of a file, given its path relative to the searched folder."""
    first_word = re.split(r"[-_.]", name.name)[0]
    for word in (first_word, *reversed(name.parent.parts)):
        # The hub converts large data sets in part, into folders such as partial-train.
        if (split := split_named(word.removeprefix("partial-"))) is not None:
            return split
    return None


def _warn_about_memory(path: str, groups: Sequence[RowGroup]) -> None:
    largest = sum(sorted((group.bytes for group in groups), reverse=True)[:CACHED_GROUPS])
    if largest > _MUCH_MEMORY:
        _LOGGER.warning(
            "the row groups in %s are large: each process may keep %.1f GiB of them in memory; "
            "write the files with smaller row groups (row_group_size of write_table)",
            path,
            largest / 2**30,
        )


def _common_names(tables: Mapping[str, Sequence[_Table]], label: str) -> tuple[str, ...] | None:
    """Returns the class names of the files, which must agree."""
    first, *others = [table for found in tables.values() for table in found]
    for table in others:
        if table.names != first.names:
            raise UserError(
                f"the class names of column {label!r} must agree in all files, but "
                f"{table.file} has {table.names} and {first.file} {first.names}"
            )
    return first.names
