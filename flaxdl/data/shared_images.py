"""Images of several classes: files with equal content in the folders of different classes."""

import hashlib
import logging
import os
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from flaxdl.data.class_files import Listing, list_files
from flaxdl.data.class_folders import ClassFile, Kind, format_names
from flaxdl.data.hash_split import split_of
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import relative_path

_LOGGER = logging.getLogger(__name__)


class LabeledFiles(NamedTuple):
    """Files of a split and their labels."""

    paths: list[str]
    labels: np.ndarray
    """Class numbers, int32[N]; or 1 for each class of a file and 0 for others, float32[N, K]."""


class _Copy(NamedTuple):
    """A file in the folder of a class."""

    file: ClassFile
    label: int
    split: str

    @property
    def name(self) -> str:
        """Name without the class folder, such as `2023/1.png`."""
        return self.file.name.partition("/")[2]


def list_shared_files(
    path: str, kind: Kind, *, validation: float, test: float
) -> tuple[Listing, dict[str, LabeledFiles]]:
    """Lists the files of each split, with all classes of each file.

    Files of equal size are compared by a hash of their content. A hash of the name without the
    class folder determines the split of a file, if folders do not; of several copies, the first
    name in alphabetical order.

    Args:
        path: path of the folder.
        kind: kind of the files.
        validation: fraction of the training files held out for validation if there is no folder for
            that split.
        test: fraction of all files held out for the test if there are no split folders.

    Returns:
        The listing of all files, and the files by split.

    Raises:
        UserError: if the folder is invalid, see `list_files`, or if copies of a file are in
            different split folders.
    """
    listing = list_files(path, kind, validation=0.0, test=0.0)
    groups = _grouped(listing)
    _check_splits(listing, kind, groups)
    fractions = {
        "validation": 0.0 if "validation" in listing.folders else validation,
        "test": 0.0 if listing.folders else test,
    }
    parts: dict[str, list[list[_Copy]]] = {
        split: []
        for split in ("train", "validation", "test")
        if split in listing.parts or fractions.get(split)
    }
    for group in groups:
        split = group[0].split
        if split == "train":
            split = split_of(min(copy.name for copy in group), **fractions)
        parts[split].append(group)
    for split, part in parts.items():
        if not part:
            raise UserError(
                f"{listing.root} has too few {kind.plural}: none was assigned to the {split} "
                f"split; add {kind.plural} or set --data.{split}-fraction"
            )
    _report(listing, kind, groups)
    return listing, {split: _labeled(part, len(listing.classes)) for split, part in parts.items()}


def _grouped(listing: Listing) -> list[list[_Copy]]:
    """Groups files of equal content; groups and their members are in the order of the listing."""
    copies = [
        _Copy(file, label, split)
        for split, files in listing.parts.items()
        for label, of_class in enumerate(files)
        for file in of_class
    ]
    sizes = [_size(copy.file.path) for copy in copies]
    counts = Counter(sizes)
    groups: dict[object, list[_Copy]] = defaultdict(list)
    for number, (copy, size) in enumerate(zip(copies, sizes, strict=True)):
        is_alone = size == 0 or counts[size] == 1
        digest = None if is_alone else _digest(copy.file.path)
        groups[number if digest is None else (size, digest)].append(copy)
    return list(groups.values())


def _size(path: str) -> int:
    """Returns the size of a file in bytes; 0 for empty and unreadable files."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _digest(path: str) -> bytes | None:
    """Returns the SHA-256 hash of a file; None if it is unreadable, which is noticed later."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def _check_splits(listing: Listing, kind: Kind, groups: list[list[_Copy]]) -> None:
    shared = [group for group in groups if len({copy.split for copy in group}) > 1]
    if not shared:
        return
    shown = [
        " and ".join(relative_path(copy.file.path, listing.root) for copy in group)
        for group in shared
    ]
    raise UserError(
        f"{len(shared):,} {kind.plural} in {listing.root} have copies in several splits, so scores "
        f"on them would not measure generalization: {format_names(shown)}; move all copies to one "
        "split"
    )


def _report(listing: Listing, kind: Kind, groups: list[list[_Copy]]) -> None:
    """Logs the number of files of several classes, and warns about copies in one class."""
    shared = sum(len({copy.label for copy in group}) > 1 for group in groups)
    _LOGGER.info(
        "%s of %s %s in %s are in several class folders",
        f"{shared:,}", f"{len(groups):,}", kind.plural, listing.root,
    )  # fmt: skip
    repeated = sum(len(group) - len({copy.label for copy in group}) for group in groups)
    if repeated:
        _LOGGER.warning(
            "%s: dropped %s copies of %s in the same class folder",
            listing.root, f"{repeated:,}", kind.plural,
        )  # fmt: skip


def _labeled(groups: list[list[_Copy]], num_classes: int) -> LabeledFiles:
    labels = np.zeros((len(groups), num_classes), np.float32)
    for row, group in zip(labels, groups, strict=True):
        row[[copy.label for copy in group]] = 1
    return LabeledFiles([group[0].file.path for group in groups], labels)
