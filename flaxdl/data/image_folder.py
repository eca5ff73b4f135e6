"""A user's own images: a folder for each class."""

import filecmp
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data import fingerprint
from flaxdl.data.class_folders import (
    Contents,
    ImageFile,
    Unused,
    composed,
    count_loose_images,
    counted,
    find_images,
    folders_in,
    listed,
    printable,
)
from flaxdl.data.dataset import Dataset, rows
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.image_files import SUFFIXES, read_image
from flaxdl.data.source import Source, Splits
from flaxdl.data.split_folders import check_no_splits_below, split_folders
from flaxdl.data.unreadable import Unreadable
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path

_LOGGER = logging.getLogger(__name__)
_LISTED_CLASSES = 50
_COMPARED_FILES = 20  # of two splits whose files have the same names


@dataclass(frozen=True)
class ImageFolder(Source):
    """Images in a folder for each class, which is named after the folder.

    Images are read at any depth below a class folder. Above the class folders there may be folders
    for splits: `train` or `training`, `val` (`valid`, `validation`, `dev`, `eval`) and `test` or
    `testing`, in any case. Without them, or without one for validation, a hash of each file's class
    and name decides to which split it belongs, whatever the seed and whatever files come or go.
    Images may differ in size and kind; the transform `Images(size=...)` makes them one.

    Files that are not used are counted and named in a warning. Hidden files and folders, those of
    operating systems and workdirs of runs are no data.

    Large folders are decoded in other processes, which import the script that runs: one of your
    own has to begin its work under `if __name__ == "__main__":`.
    """

    path: str
    """The folder."""
    validation_fraction: float = 0.1
    """Share of the training images that is held out where there is no folder for validation."""
    test_fraction: float = 0.1
    """Share of all images that is looked at once, where there is no folder for training."""
    channels: int = 3
    """3 reads images as red, green, blue; 1 as grey."""
    max_unreadable: int = 10
    """Files that cannot be read are left out and logged; more than this many are an error."""

    def __post_init__(self):
        check_fractions(self.validation_fraction, self.test_fraction)
        if self.channels not in (1, 3):
            raise UserError(f"channels must be 1 or 3, got {self.channels}")

    def load(self, seed: int) -> Splits:
        """Lists the files, and reads none of them yet.

        Raises:
            UserError: naming the folder that is missing, empty, at odds with the others or cannot
                be read.
        """
        root = str(local_path(self.path))
        if not os.path.isdir(root):
            raise UserError(f"no such folder of images: {self.path}")
        unused = Unused(root)
        try:
            folders = split_folders(root, unused)
            classes, parts = self._listed(root, folders, unused)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
        splits = self._splits(root, classes, parts, folders)
        unused.warn()
        return splits

    def _listed(
        self, root: str, folders: Mapping[str, str], unused: Unused
    ) -> tuple[list[str], dict[str, list[list[ImageFile]]]]:
        """The classes, and split → files by class."""
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
        """Split → the number of examples that flaxdl 0.1.0 would have found."""
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
        unreadable = Unreadable(self.max_unreadable, "images")
        datasets = {
            split: FileDataset(
                [[file.path for file in of_class] for of_class in files],
                Path(root),
                channels=self.channels,
                unreadable=unreadable,
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


class FileDataset(Dataset):
    """Image files, decoded when they are asked for.

    A file that cannot be read has `weight` 0, and shows the next one that can, so that whatever
    looks at the whole batch, as BatchNorm does, sees an image.

    Args:
        files: those of class 0, of class 1, ...
        folder: the folder that contains all of them.
        channels: 1 or 3.
        unreadable: where unreadable files are counted.
    """

    decodes_files = True

    def __init__(
        self,
        files: Sequence[Sequence[str | Path]],
        folder: Path,
        *,
        channels: int,
        unreadable: Unreadable,
    ):
        self.unreadable: Unreadable = unreadable
        self._folder = folder
        self._files = [str(file) for of_class in files for file in of_class]
        self._labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(f) for f in files])
        self._channels = channels

    def __len__(self) -> int:
        return len(self._files)

    def labels(self) -> np.ndarray:
        """All labels, which the folders tell."""
        return self._labels

    @cached_property
    def fingerprint(self) -> str:
        """Covers the names of the files within the folder, not their content, which is not read."""
        start = len(str(self._folder))
        return fingerprint.of_texts(composed(name[start:]) for name in self._files)

    def name_of(self, field: str) -> str:
        """The images are known by their folder."""
        return f"the images in {self._folder}" if field == "inputs" else field

    def files(self) -> list[str]:
        """The name of each file."""
        return list(self._files)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads images of any size, as `inputs`, an array of arrays uint8[H, W, C].

        Raises:
            UserError: if too many files cannot be read.
        """
        found = [self._read(int(index)) for index in indices]
        return {
            "inputs": rows([image for image, _ in found]),
            "label": self._labels[indices],
            "weight": np.array([is_it for _, is_it in found], np.float32),
        }

    def _read(self, index: int) -> tuple[np.ndarray, bool]:
        """The image, or the next one that can be read, and whether it is the image."""
        for number in range(index, index + len(self)):
            file = self._files[number % len(self)]
            try:
                return read_image(file, self._channels), number == index
            except UserError as error:
                self.unreadable.add(file, str(error))
        raise UserError(f"none of {len(self)} images can be read, as {self._files[index]}")


def _without_images(root: str, split: str, folder: str | None) -> str:
    """Says why a split is empty, and what to do."""
    if folder is None:
        return (
            f"{root} has too few images: none was assigned to the {split} split; add some, or set "
            f"--data.{split}-fraction"
        )
    loose = count_loose_images(folder)
    found = f" (images outside class folders: {loose:,})" if loose else ""
    return (
        f"{folder} has no class folders with images{found}; sort them into folders of the classes, "
        "or move the folder away"
    )


def _split(
    classes: Sequence[str], files: list[list[ImageFile]], validation: float, test: float
) -> dict[str, list[list[ImageFile]]]:
    """Split → files by class."""
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
            f"{len(held_out)} of {len(classes)} classes have too few images, all of which are held "
            f"out for validation or test: {listed(held_out, most=_LISTED_CLASSES)}; add some, make "
            "folders train, val and test, or hold nothing out (--data.validation-fraction 0 "
            "--data.test-fraction 0)"
        )
    return parts


def _list(folder: str, unused: Unused) -> dict[str, list[ImageFile]]:
    """Class → its files, in the order of the classes; two forms of one name are one class."""
    found = {name: find_images(os.path.join(folder, name)) for name in folders_in(folder)}
    check_no_splits_below(folder, {name: contents.folders for name, contents in found.items()})
    classes: dict[str, list[ImageFile]] = {}
    for name, contents in found.items():
        place = os.path.join(folder, name)
        if contents.images:
            classes.setdefault(composed(name), []).extend(contents.images)
            unused.add(place, contents.unused)
        elif contents.unused.keys() == {"workdirs of runs"}:
            unused.add(place, contents.unused)
        elif contents.unused:
            raise UserError(
                f"{place} holds no images ({', '.join(SUFFIXES)}), but other files "
                f"({counted(contents.unused)}); convert them, or move the folder away"
            )
        else:
            unused.add(place, "empty")
    if len(classes) < 2:
        raise UserError(_too_few_classes(folder, found))
    unused.add_loose_images(folder)
    return classes


def _too_few_classes(folder: str, found: Mapping[str, Contents]) -> str:
    with_images = {name: contents for name, contents in found.items() if contents.images}
    there = f"only {printable(next(iter(with_images)))!r}" if with_images else "none"
    loose = count_loose_images(folder)
    text = f"{folder} must hold a folder for each of two classes or more, has {there}"
    if loose:
        text += f"; images outside class folders: {loose:,}"
    for name, contents in with_images.items():
        if contents.folders:
            text += f"; {name} contains the folders {listed(sorted(contents.folders))}"
    return text


def _list_known(folder: str, classes: Iterable[str], unused: Unused) -> list[list[ImageFile]]:
    """The files of each class, some of which may have none here."""
    files = {name: [] for name in classes}
    unknown = []
    for name in folders_in(folder):
        contents = find_images(os.path.join(folder, name))
        unused.add(os.path.join(folder, name), contents.unused)
        if composed(name) in files:
            files[composed(name)] += contents.images
        elif contents.images:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{folder} has classes that the training folder lacks: {listed(unknown)}"
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
    """Warns if the files of another split are those of the training split."""
    paths = {file.name: file.path for of_class in train for file in of_class}
    files = [file for of_class in other for file in of_class]
    if not files or any(file.name not in paths for file in files):
        return
    sample = files[:: -(-len(files) // _COMPARED_FILES)]
    if all(filecmp.cmp(paths[file.name], file.path, shallow=False) for file in sample):
        _LOGGER.warning(
            "the images in %s are the same as in %s: scores on them say nothing about new data",
            printable(folder),
            printable(train_folder),
        )
