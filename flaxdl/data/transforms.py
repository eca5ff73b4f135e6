"""Transforms: preprocessing and augmentation between data source and model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from flaxdl.data.dataset import Dataset
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path


@dataclass(frozen=True)
class Transform:
    """Base class of transforms, and the identity. Subclasses override some of its methods.

    A run calls `fit` and `apply` once, when the data is loaded; `draw` (only in training) and
    `prepare` for each batch, on the host; and `normalize` and `augment_batch` (only in training) in
    the compiled step. For predictions, `read` makes batches from files or texts.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    """Suffixes of the files in a folder that `read` accepts; empty if it reads texts."""

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids if `apply` tokenizes texts, else None."""
        return None

    def reads_file(self, path: str) -> bool:
        """Returns True if `read` accepts a file in a folder."""
        return Path(path).suffix.lower() in self.file_suffixes

    def fit(self, train: Dataset) -> "Transform":
        """Returns the transform fitted to the raw training split, for example a vocabulary."""
        return self

    def apply(self, dataset: Dataset) -> Dataset:
        """Converts raw examples to model inputs."""
        return dataset

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws the random numbers for `prepare`, as arrays [size, ...].

        They are drawn for the global batch, of which each process uses its rows, so that a run does
        not depend on the number of processes.
        """
        return {}

    def prepare(
        self, batch: dict[str, np.ndarray], draws: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Preprocesses and augments a batch on the host.

        Args:
            batch: the examples, one row each.
            draws: in training the result of `draw`, one row per example; empty in evaluation.
        """
        return batch

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Maps the `inputs` of a batch to model inputs, in the compiled step."""
        return inputs

    def augment_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Augments a batch of training examples, in the compiled step.

        It may change `inputs` and labels, and add fields, such as `label_2` and `mix` of mixup; see
        `Task.loss_fields`. The task gets the original `inputs`. Under `jit`, the batch is that of
        all devices; under `pmap`, that of one. With gradient accumulation, it is a micro-batch.

        Args:
            batch: examples with normalized `inputs`; those of weight 0 do not count.
            key: random key, a function of the seed, the step and the micro-batch.
        """
        return batch

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Makes a batch without labels for prediction, here from .npy files.

        Args:
            items: file names, or texts.
            shapes: the shapes of the arrays of one training example: `{"inputs": (8, 8, 1)}`.

        Raises:
            UserError: naming the item that cannot be read.
        """
        return {"inputs": np.stack([_read_array(item, tuple(shapes["inputs"])) for item in items])}

    def save(self, workdir: Path) -> None:
        """Stores the fitted state for `restore`."""

    def restore(self, workdir: Path) -> "Transform":
        """Returns the fitted transform that was saved in `workdir`."""
        return self


def _read_array(path: str, shape: tuple[int, ...]) -> np.ndarray:
    file = input_path(path)
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a .npy file: {error}") from error
    if not isinstance(array, np.ndarray) or array.shape != shape:
        got = getattr(array, "shape", type(array).__name__)
        raise UserError(f"{path} must contain an array of shape {shape}, got {got}")
    return array
