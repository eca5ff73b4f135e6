"""Dataset of image files that are decoded on access."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from flaxdl.data.dataset import rows
from flaxdl.data.file_dataset import FileDataset
from flaxdl.data.image_files import read_image
from flaxdl.data.skipped_examples import SkippedExamples


class ImageDataset(FileDataset):
    """Dataset of image files that are decoded on access.

    Args:
        files: paths of the files.
        labels: label of each file, [N, ...].
        folder: folder that contains the files; names in messages are relative to it.
        channels: number of channels: 1 for grayscale, 3 for RGB.
        skipped: counter of unreadable files.
        weights: weight of each file in training, float32[N]; None for equal weights.
        labels_in_paths: True if the paths determine the labels.
    """

    plural = "images"

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
        super().__init__(
            files,
            labels,
            folder,
            skipped=skipped,
            weights=weights,
            labels_in_paths=labels_in_paths,
        )
        self._channels = channels

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads images; `inputs` is an object array of arrays uint8[H, W, C], H and W may differ.

        Raises:
            UserError: if there are too many unreadable files.
        """
        read = partial(read_image, channels=self._channels)
        found = [self.read_readable(int(index), read) for index in indices]
        weight = np.array([is_original for _, is_original in found], np.float32)
        return {
            "inputs": rows([image for image, _ in found]),
            "label": self._labels[indices],
            "weight": weight if self._weights is None else weight * self._weights[indices],
        }
