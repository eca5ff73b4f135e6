"""Base class of datasets of files that are decoded on access."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.class_folders import to_nfc
from flaxdl.data.dataset import Dataset
from flaxdl.data.skipped_examples import SkippedExamples, first_readable
from flaxdl.filesystem.paths import relative_path


class FileDataset(Dataset):
    """Dataset of files with a label each; subclasses read them.

    An unreadable file has `weight` 0 and is replaced by the next readable one, so that layers that
    use the whole batch, such as BatchNorm, see valid values.

    Args:
        files: paths of the files.
        labels: label of each file, [N, ...].
        folder: folder that contains the files; names in messages are relative to it.
        skipped: counter of unreadable files.
        weights: weight of each file in training, float32[N]; None for equal weights.
        labels_in_paths: True if the paths determine the labels.
    """

    decodes_files = True
    plural = "files"
    """Noun for messages."""

    def __init__(
        self,
        files: Sequence[str | Path],
        labels: np.ndarray,
        folder: Path,
        *,
        skipped: SkippedExamples,
        weights: np.ndarray | None = None,
        labels_in_paths: bool = True,
    ):
        self.skipped: SkippedExamples = skipped
        self._folder = folder
        self._files = list(map(str, files))
        self._labels = labels
        self._weights = weights
        self._labels_in_paths = labels_in_paths

    def __len__(self) -> int:
        return len(self._files)

    def labels(self) -> np.ndarray:
        """Returns all labels, known without reading the files, [N, ...]."""
        return self._labels

    def weights(self) -> np.ndarray | None:
        """Returns all weights, known without reading the files, [N]; None if there are none."""
        return self._weights

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of paths relative to the folder, labels and weights; files are not read."""
        folder = str(self._folder)
        paths = fingerprint.of_texts(to_nfc(name.removeprefix(folder)) for name in self._files)
        arrays = {} if self._labels_in_paths else {"label": self._labels}
        if self._weights is not None:
            arrays["weight"] = self._weights
        return fingerprint.of_arrays({"paths": np.array(paths), **arrays}) if arrays else paths

    def name_of(self, field: str) -> str:
        """Returns a field's name for messages; that of `inputs` includes the folder."""
        return f"the {self.plural} in {self._folder}" if field == "inputs" else field

    def example_name(self, index: int) -> str:
        """Returns the path of a file relative to the folder, with forward slashes."""
        return relative_path(self._files[index], self._folder)

    def files(self) -> list[str]:
        """Returns the path of each file."""
        return list(self._files)

    def read_readable(
        self, index: int, read: Callable[[str], np.ndarray]
    ) -> tuple[np.ndarray, bool]:
        """Reads a file or, if it is unreadable, the next readable one.

        Args:
            index: number of the file.
            read: callable that reads a file by its path, or raises a UserError.

        Returns:
            The array, and True if it is that of the file itself.

        Raises:
            UserError: if too many files are unreadable.
        """
        files = self._files
        return first_readable(
            index,
            len(self),
            lambda place: read(files[place]),
            name_of=files.__getitem__,
            skipped=self.skipped,
        )
