"""Source for folders of sounds with one subfolder per class."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flaxdl.data.audio_files import SUFFIXES, check_installed, is_sound, read_sound
from flaxdl.data.class_files import list_files
from flaxdl.data.class_folders import Kind
from flaxdl.data.dataset import rows
from flaxdl.data.file_dataset import FileDataset
from flaxdl.data.hash_split import check_fractions
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.source import Source, Splits

SOUNDS = Kind("sound", SUFFIXES, is_sound)


@dataclass(frozen=True)
class AudioFolder(Source):
    """WAV and FLAC files in one folder per class; the folder names are the class names.

    >>> flaxdl.data.AudioFolder("birds").load(seed=0).classes
    ('owl', 'wren')

    Folders are read and split as in `ImageFolder`. Files may differ in length, sample rate, sample
    format and number of channels; the transform `LogMel`, `Spectrogram` or `Waveforms` sets the
    length and sample rate of the examples, and only reads the section that it needs. Requires
    `pip install 'flaxdl[audio]'`.
    """

    path: str
    """Path or URL of the folder."""
    validation_fraction: float = 0.1
    """Fraction of the training sounds held out for validation if there is no `val` folder."""
    test_fraction: float = 0.1
    """Fraction of all sounds held out for the test if there is no `train` folder."""
    max_unreadable: int = 10
    """Maximum number of unreadable files to skip with a warning; more raise an error."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)

    def load(self, seed: int) -> Splits:
        """Lists the files without reading them.

        Raises:
            UserError: if a folder is missing, empty, unreadable or inconsistent with the others
                (the message contains its path), or if a required package is missing.
        """
        check_installed()
        listing = list_files(
            self.path, SOUNDS, validation=self.validation_fraction, test=self.test_fraction
        )
        skipped = SkippedExamples(self.max_unreadable, SOUNDS.plural)
        datasets = {
            split: SoundDataset(
                listing.paths(split), listing.labels(split), Path(listing.root), skipped=skipped
            )
            for split in listing.parts
        }
        return Splits(
            datasets["train"], datasets.get("validation"), datasets.get("test"), listing.classes
        )


class SoundDataset(FileDataset):
    """Dataset of sound files, of which the transform reads sections."""

    plural = SOUNDS.plural

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the labels, and as `inputs` an object array of a `Recording` per example.

        If the files have weights, returns these as `weight`.
        """
        examples = {
            "inputs": rows([Recording(self, int(index)) for index in indices]),
            "label": self._labels[indices],
        }
        return examples if self._weights is None else {**examples, "weight": self._weights[indices]}


@dataclass(frozen=True)
class Recording:
    """A sound file of a dataset."""

    dataset: SoundDataset
    index: int

    def read(self, *, sample_rate: int, length: int, place: float) -> tuple[np.ndarray, bool]:
        """Reads a section, see `read_sound`, of this file or the next readable one.

        Returns:
            The samples, int16[length], and True if they are from this file.

        Raises:
            UserError: if there are too many unreadable files.
        """
        read = partial(read_sound, sample_rate=sample_rate, length=length, place=place)
        return self.dataset.read_readable(self.index, read)
