"""Where examples come from, and how they become batches of fixed shape on the host.

Sources load splits, transforms turn raw examples into what a model takes, the pipeline makes
batches. Nothing here knows a model or how it is trained.
"""

from flaxdl.data.arrays import Arrays
from flaxdl.data.dataset import ArrayDataset, Dataset
from flaxdl.data.dates import Dates
from flaxdl.data.documents import Documents
from flaxdl.data.image_folder import ImageFolder
from flaxdl.data.images import ImageRows, Images
from flaxdl.data.pipeline import evaluation_batches, steps_per_epoch, training_batches
from flaxdl.data.source import Source, Splits, share_of
from flaxdl.data.text import Text
from flaxdl.data.text_pairs import TextPairs
from flaxdl.data.text_table import TextTable
from flaxdl.data.tfds import Tfds
from flaxdl.data.transforms import Transform

__all__ = [
    "ArrayDataset",
    "Arrays",
    "Dataset",
    "Dates",
    "Documents",
    "ImageFolder",
    "ImageRows",
    "Images",
    "Source",
    "Splits",
    "Text",
    "TextPairs",
    "TextTable",
    "Tfds",
    "Transform",
    "evaluation_batches",
    "share_of",
    "steps_per_epoch",
    "training_batches",
]
