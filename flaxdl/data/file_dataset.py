"""Dataset of image files that are decoded on access."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.class_folders import to_nfc
from flaxdl.data.dataset import Dataset, rows
from flaxdl.data.image_files import read_image
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.errors import UserError


class FileDataset(Dataset):
    """Dataset of image files that are decoded on access.

    An unreadable file has `weight` 0 and is replaced by the next readable image, so that layers
    that use the whole batch, such as BatchNorm, see valid pixels.

    Args:
        files: paths of the files.
        labels: label of each file, [N, ...].
        folder: folder that contains the files; names in messages are relative to it.
        channels: number of channels: 1 for grayscale, 3 for RGB.
        skipped: counter of unreadable files.
        weights: weight of each file in training, float32[N]; None for equal weights.
        labels_in_paths: True if the paths determine the labels.
    """

    decodes_files = True

    def __init__(
        self,
        files: Sequence[str | Path],
        labels: np.ndarray,
        folder: Path,
        *,
        channels: int,
        skipped: SkippedExamples,
        weights: np.ndarray | None = None,
        labels_in_paths: bool = True,
    ):
        self.skipped: SkippedExamples = skipped
        self._folder = folder
        self._files = list(map(str, files))
        self._labels = labels
        self._weights = weights
        self._channels = channels
        self._labels_in_paths = labels_in_paths

    def __len__(self) -> int:
        return len(self._files)

    def labels(self) -> np.ndarray:
        """Returns all labels, known without reading the files, [N, ...]."""
        return self._labels

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of paths relative to the folder, labels and weights; files are not read."""
        start = len(str(self._folder))
        paths = fingerprint.of_texts(to_nfc(name[start:]) for name in self._files)
        arrays = {} if self._labels_in_paths else {"label": self._labels}
        if self._weights is not None:
            arrays["weight"] = self._weights
        return fingerprint.of_arrays({"paths": np.array(paths), **arrays}) if arrays else paths

    def name_of(self, field: str) -> str:
        """Returns a field's name for messages; that of `inputs` includes the folder."""
        return f"the images in {self._folder}" if field == "inputs" else field

    def example_name(self, index: int) -> str:
        """Returns the path of a file relative to the folder, with forward slashes."""
        return os.path.relpath(self._files[index], self._folder).replace(os.sep, "/")

    def files(self) -> list[str]:
        """Returns the path of each file."""
        return list(self._files)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads images; `inputs` is an object array of arrays uint8[H, W, C], H and W may differ.

        Raises:
            UserError: if there are too many unreadable files.
        """
        found = [self._read(int(index)) for index in indices]
        weight = np.array([is_original for _, is_original in found], np.float32)
        return {
            "inputs": rows([image for image, _ in found]),
            "label": self._labels[indices],
            "weight": weight if self._weights is None else weight * self._weights[indices],
        }

    def _read(self, index: int) -> tuple[np.ndarray, bool]:
        """Returns the image and True or, if it is unreadable, the next readable one and False."""
        for number in range(index, index + len(self)):
            file = self._files[number % len(self)]
            try:
                return read_image(file, self._channels), number == index
            except UserError as error:
                self.skipped.add(file, str(error))
        raise UserError(
            f"none of the {len(self)} images can be read; the first one tried was "
            f"{self._files[index]}"
        )
