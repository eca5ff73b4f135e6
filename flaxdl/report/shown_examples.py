"""Examples to show in the report: their choice, their inputs as pictures or texts, their names."""

from collections.abc import Sequence

import numpy as np

from flaxdl.analysis.figures import as_picture, series_picture
from flaxdl.data import Dataset, Waveforms
from flaxdl.data.series import FittedSeries
from flaxdl.data.text import FittedText
from flaxdl.runs.restored import RestoredRun

_LARGEST_PICTURE = 128  # pixels of the longer side


class KeptExamples:
    """Collection that keeps the examples with the lowest values, and their inputs."""

    def __init__(self, most: int):
        self._most = most
        self._examples: list[tuple[float, int, np.ndarray]] = []
        self._count = 0  # examples of earlier batches

    def add(self, rows: np.ndarray, values: np.ndarray, inputs: np.ndarray) -> None:
        """Adds `rows` of the next batch; `values` and `inputs` are those of all its examples."""
        rows = rows[np.argsort(values[rows], kind="stable")][: self._most]
        self._examples += [
            (float(values[row]), self._count + int(row), inputs[row].copy()) for row in rows
        ]
        self._count += len(values)
        self._examples = sorted(self._examples, key=lambda one: one[0])[: self._most]

    @property
    def numbers(self) -> np.ndarray:
        """Numbers of the examples, lowest value first."""
        return np.array([number for _, number, _ in self._examples], np.int32)

    @property
    def inputs(self) -> list[np.ndarray]:
        """Inputs of the examples, lowest value first."""
        return [inputs for _, _, inputs in self._examples]


def shown_inputs(run: RestoredRun, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Returns inputs as images of one size or as texts; empty if they are neither.

    Sounds are shown as spectrograms, with high frequencies at the top.
    """
    if not inputs:
        return np.zeros(0, np.uint8)
    transform = run.transform
    if isinstance(transform, Waveforms):
        spectrograms = transform.pictures(np.stack(inputs))
        return np.stack([_smaller(as_picture(one[::-1])) for one in spectrograms])
    if inputs[0].ndim == 1 and isinstance(transform, FittedText):
        return np.array([transform.decode(row[None])[0] for row in inputs])
    if isinstance(transform, FittedSeries):
        return np.stack([series_picture(row) for row in inputs])
    if inputs[0].ndim in (2, 3):
        return np.stack([_smaller(as_picture(row)) for row in inputs])
    return np.zeros(0, np.uint8)


def example_names(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """Returns the names of examples; empty if they have none."""
    names = [dataset.example_name(int(index)) for index in indices]
    return np.zeros(0, np.int32) if None in names else np.array(names, dtype=str)


def _smaller(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    scale = _LARGEST_PICTURE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(round(scale * side), 1) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))
