"""Transforms: what happens to examples between their source and the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from flaxdl.data.dataset import Dataset
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path


@dataclass(frozen=True)
class Transform:
    """Takes examples as they are; each method is a place where a subclass can do more.

    In the order of a run: `fit` and `apply` when the data is loaded, `draw` (in training only) and
    `prepare` for each batch on the host, `normalize` inside the compiled step; `read` for a
    prediction.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    """Suffixes of the files that `read` takes from a folder; none if it takes texts."""

    @property
    def vocab_size(self) -> int | None:
        """How many token ids there are, where `apply` makes tokens of texts."""
        return None

    def reads_file(self, path: str) -> bool:
        """Returns whether a file in a folder is one that `read` takes."""
        return Path(path).suffix.lower() in self.file_suffixes

    def fit(self, train: Dataset) -> "Transform":
        """Learns what is needed from the raw training split, such as a vocabulary."""
        return self

    def apply(self, dataset: Dataset) -> Dataset:
        """Turns raw examples into arrays that a model takes."""
        return dataset

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws what chance decides in `prepare`, as arrays [size, ...].

        The draws are for the whole global batch, and each process is given its rows, so that a run
        does not depend on the number of processes.
        """
        return {}

    def prepare(
        self, batch: dict[str, np.ndarray], draws: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Makes a batch what it has to be on the device.

        Args:
            batch: the examples, one row each.
            draws: in training what `draw` gave, one row per example; empty in evaluation.
        """
        return batch

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Maps a batch's `inputs` to what the model sees, inside the compiled step."""
        return inputs

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Makes a batch without labels from what a user wants predicted, here .npy files.

        Args:
            items: names of files, or texts.
            shapes: the shape of one training example's arrays, as in `{"inputs": (8, 8, 1)}`.

        Raises:
            UserError: naming the item that cannot be read.
        """
        return {"inputs": np.stack([_read_array(item, tuple(shapes["inputs"])) for item in items])}

    def save(self, workdir: Path) -> None:
        """Stores what `fit` has learnt, for `restore`."""

    def restore(self, workdir: Path) -> "Transform":
        """Returns the fitted transform that was saved in `workdir`."""
        return self


def _read_array(path: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(local_path(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.shape != shape:
        got = getattr(array, "shape", type(array).__name__)
        raise UserError(f"{path} must hold an array of shape {shape}, got {got}")
    return array
