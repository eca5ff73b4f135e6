"""Source for image folders with one subfolder per class."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flaxdl.data.class_files import Listing, list_files
from flaxdl.data.class_folders import Kind
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.image_dataset import ImageDataset
from flaxdl.data.image_files import SUFFIXES, is_image
from flaxdl.data.shared_images import LabeledFiles, list_shared_files
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.source import Source, Splits
from flaxdl.errors import UserError

IMAGES = Kind("image", SUFFIXES, is_image)


@dataclass(frozen=True)
class ImageFolder(Source):
    """Images in one folder per class; the folder names are the class names.

    >>> flaxdl.data.ImageFolder("pets").load(seed=0).classes
    ('cat', 'dog')

    Images are found at any depth in a class folder. The class folders may be in split folders:
    `train` or `training`, `val` (`valid`, `validation`, `dev`, `eval`) and `test` or `testing`,
    ignoring case. Without split folders, or without one for validation, a hash of each file's class
    and name determines its split, independent of the seed and of other files. Images may differ in
    size and format; the transform `Images(size=...)` resizes them to one size.

    One warning lists the unused files by kind. Hidden files and folders, those created by operating
    systems, and workdirs of runs are ignored.

    Images of large folders are decoded in worker processes. These import the main script, so your
    own script must start its work under `if __name__ == "__main__":`.
    """

    path: str
    """Path or URL of the image folder."""
    validation_fraction: float = 0.1
    """Fraction of the training images held out for validation if there is no `val` folder."""
    test_fraction: float = 0.1
    """Fraction of all images held out for the test if there is no `train` folder."""
    channels: int = 3
    """Number of channels: 3 for RGB, 1 for grayscale."""
    max_unreadable: int = 10
    """Maximum number of unreadable files to skip with a warning; more raise an error."""
    multi_label: bool = False
    """Several classes per image: an image whose file has copies in the folders of several classes
    is one example with all these labels (multi-label classification). Copies may have different
    names, but must be in one split; a hash of the name, without the class folder, determines it."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")

    def load(self, seed: int) -> Splits:
        """Lists the files without reading them, except to compare files for `multi_label`.

        Raises:
            UserError: if a folder is missing, empty, unreadable or inconsistent with the others;
                the message contains its path.
        """
        read = list_shared_files if self.multi_label else _list_files
        listing, parts = read(
            self.path, IMAGES, validation=self.validation_fraction, test=self.test_fraction
        )
        skipped = SkippedExamples(self.max_unreadable, IMAGES.plural)
        datasets = {
            split: ImageDataset(
                part.paths,
                part.labels,
                Path(listing.root),
                channels=self.channels,
                skipped=skipped,
                labels_in_paths=not self.multi_label,
            )
            for split, part in parts.items()
        }
        if not self.multi_label:
            earlier = self._counts_of_0_1_0(listing)
            for split, dataset in datasets.items():
                if earlier[split] != len(dataset):
                    dataset.examples_in_0_1_0 = earlier[split]
        return Splits(
            datasets["train"], datasets.get("validation"), datasets.get("test"), listing.classes
        )

    def _counts_of_0_1_0(self, listing: Listing) -> dict[str, int]:
        """Returns the number of examples per split according to the rules of flaxdl 0.1.0."""
        folders = listing.folders
        names = {
            split: [file.name_in_0_1_0 for of_class in files for file in of_class]
            for split, files in listing.parts.items()
        }
        names = {split: [name for name in of_split if name] for split, of_split in names.items()}
        held_out, tested = (os.path.basename(folders.get(s, "")) for s in ("validation", "test"))
        if not folders:
            fractions = (self.validation_fraction, self.test_fraction)
            return Counter(split_of(n, *fractions) for of_split in names.values() for n in of_split)
        counts = {split: len(of_split) for split, of_split in names.items()}
        if held_out not in ("val", "valid", "validation"):
            hashed = names["train"] + ([] if held_out else names.get("validation", []))
            found = Counter(split_of(name, self.validation_fraction, 0) for name in hashed)
            counts |= {split: found[split] for split in ("train", "validation")}
        if tested != "test":
            counts["test"] = 0
        return counts


def _list_files(
    path: str, kind: Kind, *, validation: float, test: float
) -> tuple[Listing, dict[str, LabeledFiles]]:
    listing = list_files(path, kind, validation=validation, test=test)
    parts = {
        split: LabeledFiles(listing.paths(split), listing.labels(split)) for split in listing.parts
    }
    return listing, parts
