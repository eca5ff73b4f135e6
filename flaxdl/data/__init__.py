"""Data sources, transforms and input pipelines that run on the host.

Sources load splits, transforms turn raw examples into model inputs, and the pipeline makes batches
of fixed shape. Nothing here depends on a model or on the training loop.
"""

from flaxdl.data.arrays import Arrays
from flaxdl.data.audio import LogMel, Spectrogram, Waveforms
from flaxdl.data.audio_folder import AudioFolder
from flaxdl.data.auto_augment import AutoAugment
from flaxdl.data.dataset import ArrayDataset, Dataset
from flaxdl.data.dates import Dates
from flaxdl.data.documents import Documents
from flaxdl.data.el_nino import ElNino
from flaxdl.data.image_folder import ImageFolder
from flaxdl.data.image_operations import Augmentation
from flaxdl.data.image_parquet import ImageParquet
from flaxdl.data.image_table import ImageTable
from flaxdl.data.images import ImageRows, Images
from flaxdl.data.masked_text import MaskedText
from flaxdl.data.next_sentence_pairs import NextSentencePairs
from flaxdl.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from flaxdl.data.rand_augment import RandAugment
from flaxdl.data.reversed_strings import ReversedStrings
from flaxdl.data.scaling import Scaling
from flaxdl.data.series import Series
from flaxdl.data.series_table import SeriesSource, SeriesTable
from flaxdl.data.sounds import Sounds
from flaxdl.data.source import Source, Splits, take_fraction
from flaxdl.data.text import Text
from flaxdl.data.text_pairs import TextPairs
from flaxdl.data.text_table import TextTable
from flaxdl.data.tfds import Tfds
from flaxdl.data.transforms import Transform
from flaxdl.data.trivial_augment import TrivialAugmentWide

__all__ = [
    "ArrayDataset",
    "Arrays",
    "AudioFolder",
    "Augmentation",
    "AutoAugment",
    "Dataset",
    "Dates",
    "Documents",
    "ElNino",
    "ImageFolder",
    "ImageParquet",
    "ImageRows",
    "ImageTable",
    "Images",
    "LogMel",
    "MaskedText",
    "NextSentencePairs",
    "RandAugment",
    "ReversedStrings",
    "Scaling",
    "Series",
    "SeriesSource",
    "SeriesTable",
    "Sounds",
    "Source",
    "Spectrogram",
    "Splits",
    "Text",
    "TextPairs",
    "TextTable",
    "Tfds",
    "Transform",
    "TrivialAugmentWide",
    "Waveforms",
    "evaluation_batches",
    "steps_per_epoch",
    "take_fraction",
    "training_batches",
]
