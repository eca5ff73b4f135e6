"""Source for image folders with one subfolder per class."""

import filecmp
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.class_folders import (
    Contents,
    ImageFile,
    UnusedFiles,
    count_loose_images,
    find_images,
    folders_in,
    format_counts,
    format_names,
    printable,
    to_nfc,
)
from flaxdl.data.file_dataset import FileDataset
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.image_files import SUFFIXES
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.source import Source, Splits
from flaxdl.data.split_folders import check_no_splits_below, split_folders
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path

_LOGGER = logging.getLogger(__name__)
_LISTED_CLASSES = 50
_COMPARED_FILES = 20  # in two splits with the same file names


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
    """Path of the image folder."""
    validation_fraction: float = 0.1
    """Fraction of the training images held out for validation if there is no `val` folder."""
    test_fraction: float = 0.1
    """Fraction of all images held out for the test if there is no `train` folder."""
    channels: int = 3
    """Number of channels: 3 for RGB, 1 for grayscale."""
    max_unreadable: int = 10
    """Maximum number of unreadable files to skip with a warning; more raise an error."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")

    def load(self, seed: int) -> Splits:
        """Lists the files without reading them.

        Raises:
            UserError: if a folder is missing, empty, unreadable or inconsistent with the others;
                the message contains its path.
        """
        root = str(local_path(self.path))
        if not os.path.isdir(root):
            raise UserError(f"no such image folder or file: {self.path}")
        unused = UnusedFiles(root)
        try:
            folders = split_folders(root, unused)
            classes, parts = self._listed(root, folders, unused)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
        splits = self._splits(root, classes, parts, folders)
        unused.warn()
        return splits

    def _listed(
        self, root: str, folders: Mapping[str, str], unused: UnusedFiles
    ) -> tuple[list[str], dict[str, list[list[ImageFile]]]]:
        """Returns the class names and, for each split, the files of each class."""
        classes = _list(folders.get("train", root), unused)
        names = [printable(name) for name in classes]
        files = list(classes.values())
        if not folders:
            return names, _split(names, files, self.validation_fraction, self.test_fraction)
        unused.add_loose_images(root)
        if "validation" in folders:
            parts = {
                "train": files,
                "validation": _list_known(folders["validation"], classes, unused),
            }
        else:
            parts = _split(names, files, self.validation_fraction, 0.0)
        if "test" in folders:
            parts["test"] = _list_known(folders["test"], classes, unused)
        for split in sorted(folders.keys() - {"train"}):
            _warn_if_same(parts["train"], parts[split], folders["train"], folders[split])
        return names, parts

    def _counts_of_0_1_0(
        self, folders: Mapping[str, str], parts: Mapping[str, list[list[ImageFile]]]
    ) -> dict[str, int]:
        """Returns the number of examples per split according to the rules of flaxdl 0.1.0."""
        names = {
            split: [file.name_in_0_1_0 for of_class in files for file in of_class]
            for split, files in parts.items()
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

    def _splits(
        self,
        root: str,
        classes: Sequence[str],
        parts: Mapping[str, list[list[ImageFile]]],
        folders: Mapping[str, str],
    ) -> Splits:
        earlier = self._counts_of_0_1_0(folders, parts)
        skipped = SkippedExamples(self.max_unreadable, "images")
        datasets = {
            split: FileDataset(
                [file.path for of_class in files for file in of_class],
                np.repeat(np.arange(len(files), dtype=np.int32), list(map(len, files))),
                Path(root),
                channels=self.channels,
                skipped=skipped,
            )
            for split, files in parts.items()
        }
        for split, dataset in datasets.items():
            if len(dataset) == 0:
                raise UserError(_without_images(root, split, folders.get(split)))
            if earlier[split] != len(dataset):
                dataset.examples_in_0_1_0 = earlier[split]
        return Splits(
            datasets["train"], datasets.get("validation"), datasets.get("test"), tuple(classes)
        )


def _without_images(root: str, split: str, folder: str | None) -> str:
    """Describes why a split is empty and suggests a remedy."""
    if folder is None:
        return (
            f"{root} has too few images: none was assigned to the {split} split; add images or set "
            f"--data.{split}-fraction"
        )
    loose = count_loose_images(folder)
    found = f" (images outside class folders: {loose:,})" if loose else ""
    return (
        f"{folder} has no class folders with images{found}; sort the images into one folder per "
        "class or move the folder away"
    )


def _split(
    classes: Sequence[str], files: list[list[ImageFile]], validation: float, test: float
) -> dict[str, list[list[ImageFile]]]:
    """Assigns files to splits by hash; returns, for each split, the files of each class."""
    fractions = {"train": 1.0, "validation": validation, "test": test}
    parts = {split: [[] for _ in classes] for split, fraction in fractions.items() if fraction > 0}
    for label, of_class in enumerate(files):
        for file in of_class:
            parts[split_of(file.name, validation, test)][label].append(file)
    held_out = [
        f"{name} ({len(of_class)})"
        for name, of_class, trained in zip(classes, files, parts["train"], strict=True)
        if not trained
    ]
    if held_out:
        raise UserError(
            f"{len(held_out)} of {len(classes)} classes have too few images: all of them are held "
            f"out for validation or test: {format_names(held_out, most=_LISTED_CLASSES)}; add "
            "images, create the folders train, val and test, or hold nothing out "
            "(--data.validation-fraction 0 --data.test-fraction 0)"
        )
    return parts


def _list(folder: str, unused: UnusedFiles) -> dict[str, list[ImageFile]]:
    """Returns the files by class name; folder names equal in NFC are one class."""
    found = {name: find_images(os.path.join(folder, name)) for name in folders_in(folder)}
    check_no_splits_below(folder, {name: contents.folders for name, contents in found.items()})
    classes: dict[str, list[ImageFile]] = {}
    for name, contents in found.items():
        place = os.path.join(folder, name)
        if contents.images:
            classes.setdefault(to_nfc(name), []).extend(contents.images)
            unused.add(place, contents.unused)
        elif contents.unused.keys() == {"workdirs of runs"}:
            unused.add(place, contents.unused)
        elif contents.unused:
            raise UserError(
                f"{place} contains no images ({', '.join(SUFFIXES)}), only other files "
                f"({format_counts(contents.unused)}); convert them or move the folder away"
            )
        else:
            unused.add(place, "empty")
    if len(classes) < 2:
        raise UserError(_too_few_classes(folder, found))
    unused.add_loose_images(folder)
    return classes


def _too_few_classes(folder: str, found: Mapping[str, Contents]) -> str:
    with_images = {name: contents for name, contents in found.items() if contents.images}
    present = f"only {printable(next(iter(with_images)))!r}" if with_images else "none"
    loose = count_loose_images(folder)
    text = f"{folder} must contain folders for at least two classes, has {present}"
    if loose:
        text += f"; images outside class folders: {loose:,}"
    for name, contents in with_images.items():
        if contents.folders:
            text += f"; {name} contains the folders {format_names(sorted(contents.folders))}"
    return text


def _list_known(folder: str, classes: Iterable[str], unused: UnusedFiles) -> list[list[ImageFile]]:
    """Lists the files of each class in a split folder, in which classes may be missing."""
    files = {name: [] for name in classes}
    unknown = []
    for name in folders_in(folder):
        contents = find_images(os.path.join(folder, name))
        unused.add(os.path.join(folder, name), contents.unused)
        if to_nfc(name) in files:
            files[to_nfc(name)] += contents.images
        elif contents.images:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{folder} has classes that are not in the training folder: {format_names(unknown)}"
            f"{did_you_mean(unknown[0], files)}"
        )
    unused.add_loose_images(folder)
    return list(files.values())


def _warn_if_same(
    train: Sequence[Sequence[ImageFile]],
    other: Sequence[Sequence[ImageFile]],
    train_folder: str,
    folder: str,
) -> None:
    """Warns if all files of another split are also in the training split."""
    paths = {file.name: file.path for of_class in train for file in of_class}
    files = [file for of_class in other for file in of_class]
    if not files or any(file.name not in paths for file in files):
        return
    sample = files[:: -(-len(files) // _COMPARED_FILES)]
    if all(filecmp.cmp(paths[file.name], file.path, shallow=False) for file in sample):
        _LOGGER.warning(
            "the images in %s are the same as in %s: scores on them do not measure generalization",
            printable(folder),
            printable(train_folder),
        )
