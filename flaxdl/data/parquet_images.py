"""Dataset of images in the row groups of Parquet files, decoded on access."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.dataset import Dataset, rows
from flaxdl.data.image_files import decode_image
from flaxdl.data.shuffling import CACHED_GROUPS
from flaxdl.data.skipped_examples import SkippedExamples, first_readable
from flaxdl.errors import UserError


@dataclass(frozen=True)
class RowGroup:
    """Row group of a Parquet file: the rows that are read together."""

    file: str
    """Path of the file."""
    number: int
    """Number of the row group in the file."""
    first_row: int
    """Row of the file with which the group begins."""
    size: int
    """Number of rows."""
    bytes: int
    """Size of the images in the file."""


class ParquetImages(Dataset):
    """Dataset of images in Parquet files.

    An unreadable image has `weight` 0 and is replaced by the next readable one, as in folders.

    Args:
        groups: row groups in the order of the examples.
        labels: label of each row, [N, ...].
        folder: folder that contains the files; names in messages are relative to it.
        column: name of the image column: structs with a field `bytes`, or bytes.
        channels: number of channels: 1 for grayscale, 3 for RGB.
        skipped: counter of unreadable images.
        cache: cache of row groups, which the splits share.
    """

    decodes_files = True

    def __init__(
        self,
        groups: Sequence[RowGroup],
        labels: np.ndarray,
        folder: Path,
        *,
        column: str,
        channels: int,
        skipped: SkippedExamples,
        cache: "RowGroupCache",
    ):
        self.skipped: SkippedExamples = skipped
        self._groups = list(groups)
        self._labels = labels
        self._folder = folder
        self._column = column
        self._channels = channels
        sizes = [group.size for group in groups]
        self._group_of_row = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self._starts = np.cumsum([0, *sizes])
        self._cache = cache

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> np.ndarray:
        """Returns all labels, known without reading the images, [N, ...]."""
        return self._labels

    def read_groups(self) -> np.ndarray:
        """Returns the number of each row's group, int32[N]."""
        return self._group_of_row

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of file names, row groups and labels; images are not read."""
        folder = str(self._folder)
        names = (
            f"{group.file.removeprefix(folder)} {group.number} {group.size}"
            for group in self._groups
        )
        groups = np.array(fingerprint.of_texts(names))
        return fingerprint.of_arrays({"groups": groups, "label": self._labels})

    def name_of(self, field: str) -> str:
        """Returns a field's name for messages; that of `inputs` includes the folder."""
        return f"the images in {self._folder}" if field == "inputs" else field

    def example_name(self, index: int) -> str:
        """Returns the file and the row of an image, such as `train-00000-of-00002.parquet:17`."""
        group = self._groups[self._group_of_row[index]]
        row = group.first_row + index - int(self._starts[self._group_of_row[index]])
        return f"{Path(group.file).relative_to(self._folder).as_posix()}:{row}"

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Decodes images; `inputs` is an object array of arrays uint8[H, W, C], H and W may differ.

        Raises:
            UserError: if there are too many unreadable images, or if a file cannot be read.
        """
        found = [
            first_readable(
                int(index), len(self), self._read, name_of=self.example_name, skipped=self.skipped
            )
            for index in indices
        ]
        return {
            "inputs": rows([image for image, _ in found]),
            "label": self._labels[indices],
            "weight": np.array([is_original for _, is_original in found], np.float32),
        }

    def _read(self, index: int) -> np.ndarray:
        number = int(self._group_of_row[index])
        group, name = self._groups[number], self.example_name(index)
        contents = self._cache.get(group, lambda: read_images(group, self._column))
        content = contents[index - int(self._starts[number])]
        if content is None:
            raise UserError(f"{name} has no image")
        return decode_image(content, name, self._channels)


def read_images(group: RowGroup, column: str) -> list[bytes | None]:
    """Reads the encoded images of a row group; None for missing ones.

    Raises:
        UserError: if the file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(group.file) as file:
            table = file.read_row_group(group.number, columns=[column])
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{group.file} cannot be read: {error}") from error
    images = table.column(column).to_pylist()
    return [image["bytes"] if isinstance(image, dict) else image for image in images]


class RowGroupCache:
    """Thread-safe cache of the most recently used row groups; copies in processes are empty.

    It keeps `CACHED_GROUPS`, two windows of the order of an epoch.
    """

    def __init__(self):
        self._contents: OrderedDict[RowGroup, list[bytes | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._contents)

    def get(self, group: RowGroup, read: Callable[[], list[bytes | None]]) -> list[bytes | None]:
        """Returns the contents of a row group, read by `read` if they are not cached."""
        with self._lock:  # while reading, too, so that two threads do not read the same group
            if group not in self._contents:
                self._contents[group] = read()
            self._contents.move_to_end(group)
            while len(self._contents) > CACHED_GROUPS:
                self._contents.popitem(last=False)
            return self._contents[group]

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()
