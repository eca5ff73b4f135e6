"""A user's own images: a folder for each class."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.dataset import Dataset, rows
from flaxdl.data.hash_split import check_fractions, split_of
from flaxdl.data.image_files import SUFFIXES, read_image
from flaxdl.data.source import Source, Splits
from flaxdl.data.unreadable import Unreadable
from flaxdl.spelling import did_you_mean

_VALIDATION_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class ImageFolder(Source):
    """Images in a folder for each class, which is called as the folder.

    Above the class folders there may be folders `train`, `val` (`valid`, `validation`) and `test`.
    Without them, or without one for validation, a hash of each file's class and name decides to
    which split it belongs, whatever the seed and whatever files come or go. Images may differ in
    size and kind; the transform `Images(size=...)` makes them one.

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
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")

    def load(self, seed: int) -> Splits:
        """Lists the files, and reads none of them yet.

        Raises:
            ValueError: naming the folder that is missing, empty, at odds with the others or cannot
                be read.
        """
        folder = Path(self.path).expanduser()
        try:
            classes, parts = self._listed(folder)
        except OSError as error:
            raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
        return self._splits(folder, classes, parts)

    def _listed(self, folder: Path) -> tuple[list[str], dict[str, list[list[Path]]]]:
        """The classes, and split -> files by class."""
        if not folder.is_dir():
            raise ValueError(f"no such folder of images: {self.path}")
        if not _holds_classes(folder / "train"):
            classes, files = _list(folder)
            return classes, _split(classes, files, self.validation_fraction, self.test_fraction)
        classes, files = _list(folder / "train")
        held_out = _validation_folder(folder)
        if held_out is None:
            parts = _split(classes, files, self.validation_fraction, 0.0)
        else:
            parts = {"train": files, "validation": _list_known(held_out, classes)}
        if _holds_classes(folder / "test"):
            parts["test"] = _list_known(folder / "test", classes)
        return classes, parts

    def _splits(
        self, folder: Path, classes: Sequence[str], parts: dict[str, list[list[Path]]]
    ) -> Splits:
        unreadable = Unreadable(self.max_unreadable, "images")
        datasets = {
            split: FileDataset(files, folder, channels=self.channels, unreadable=unreadable)
            for split, files in parts.items()
        }
        for split, dataset in datasets.items():
            if len(dataset) == 0:
                raise ValueError(
                    f"{folder} has too few images: none of them falls to the {split} split; "
                    f"add some, or set --data.{split}-fraction"
                )
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
        files: Sequence[Sequence[Path]],
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
        return fingerprint.of_texts(name[start:] for name in self._files)

    def files(self) -> list[str]:
        """The name of each file."""
        return list(self._files)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads images of any size, as `inputs`, an array of arrays uint8[H, W, C].

        Raises:
            ValueError: if too many files cannot be read.
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
            except ValueError as error:
                self.unreadable.add(file, str(error))
        raise ValueError(f"none of {len(self)} images can be read, as {self._files[index]}")


def _split(
    classes: Sequence[str], files: list[list[Path]], validation: float, test: float
) -> dict[str, list[list[Path]]]:
    """Split -> files by class."""
    fractions = {"train": 1.0, "validation": validation, "test": test}
    parts = {split: [[] for _ in classes] for split, fraction in fractions.items() if fraction > 0}
    for label, (name, of_class) in enumerate(zip(classes, files, strict=True)):
        for file in of_class:
            parts[split_of(f"{name}/{file.name}", validation, test)][label].append(file)
        if not parts["train"][label]:
            raise ValueError(
                f"class {name} has too few images: all {len(of_class)} are held out for "
                f"validation or test; add some, or make folders train, val and test"
            )
    return parts


def _holds_classes(folder: Path) -> bool:
    """Whether this is a folder of folders, not that of a class called `train` or `test`."""
    return folder.is_dir() and any(_visible(entry) and entry.is_dir() for entry in _entries(folder))


def _validation_folder(folder: Path) -> Path | None:
    there = [folder / name for name in _VALIDATION_NAMES if (folder / name).is_dir()]
    if len(there) > 1:
        raise ValueError(
            f"{folder} must have one folder for validation, got {', '.join(f.name for f in there)}"
        )
    return there[0] if there else None


def _list(folder: Path) -> tuple[list[str], list[list[Path]]]:
    """The classes, and the files of each."""
    folders = sorted(e.name for e in _entries(folder) if _visible(e) and e.is_dir())
    if len(folders) < 2:
        there = f"only {folders[0]!r}" if folders else "none"
        images = sum(
            _visible(e) and Path(e.name).suffix.lower() in SUFFIXES for e in _entries(folder)
        )
        raise ValueError(
            f"{folder} must hold a folder for each of two classes or more, has {there}"
            + (f"; images that are in none: {images}" if images else "")
        )
    return folders, [_list_images(folder / name) for name in folders]


def _list_known(folder: Path, classes: Sequence[str]) -> list[list[Path]]:
    """The files of each class, some of which may have none here."""
    there = {e.name for e in _entries(folder) if _visible(e) and e.is_dir()}
    unknown = sorted(there - set(classes))
    if unknown:
        raise ValueError(
            f"{folder} has classes that the training folder lacks: {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], classes)}"
        )
    return [_list_images(folder / name) if name in there else [] for name in classes]


def _list_images(folder: Path) -> list[Path]:
    passed_over = Counter()  # suffix -> files
    images = []
    for entry in _entries(folder):
        suffix = Path(entry.name).suffix.lower()
        if _visible(entry) and suffix in SUFFIXES and entry.is_file():
            images.append(Path(entry.path))
        else:
            passed_over["hidden" if not _visible(entry) else suffix or "no suffix"] += 1
    if not images:
        others = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common(5))
        raise ValueError(
            f"{folder} holds no images ({', '.join(SUFFIXES)})"
            + (f"; passed over were {passed_over.total()} files: {others}" if others else "")
        )
    return sorted(images)


def _entries(folder: Path) -> list[os.DirEntry]:
    with os.scandir(folder) as entries:
        return list(entries)


def _visible(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".")
