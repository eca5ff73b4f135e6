"""Lists the files of each class and split in a folder with one subfolder per class."""

import filecmp
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.class_folders import (
    ClassFile,
    Contents,
    Kind,
    UnusedFiles,
    count_loose_files,
    find_files,
    folders_in,
    format_counts,
    format_names,
    printable,
    to_nfc,
)
from flaxdl.data.hash_split import split_of
from flaxdl.data.split_folders import check_no_splits_below, split_folders
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path

_LOGGER = logging.getLogger(__name__)
_LISTED_CLASSES = 50
_COMPARED_FILES = 20  # in two splits with the same file names


class Listing(NamedTuple):
    """The files of a folder with one subfolder per class."""

    root: str
    """Path of the folder."""
    classes: tuple[str, ...]
    parts: Mapping[str, Sequence[Sequence[ClassFile]]]
    """Files by split and class number."""
    folders: Mapping[str, str]
    """Path of each split's folder; empty if splits are determined by hashes."""

    def paths(self, split: str) -> list[str]:
        """Returns the paths of the files of a split, in the order of the classes."""
        return [file.path for of_class in self.parts[split] for file in of_class]

    def labels(self, split: str) -> np.ndarray:
        """Returns the class number of each of the `paths`, int32[N]."""
        counts = list(map(len, self.parts[split]))
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def list_files(path: str, kind: Kind, *, validation: float, test: float) -> Listing:
    """Lists the files of each class and split, without reading them.

    One warning lists the unused files.

    Args:
        path: path of the folder.
        kind: kind of the files.
        validation: fraction of the training files held out for validation if there is no folder for
            that split.
        test: fraction of all files held out for the test if there are no split folders.

    Raises:
        UserError: if a folder is missing, empty, unreadable or inconsistent with the others; the
            message contains its path.
    """
    root = str(input_path(path))
    if not os.path.isdir(root):
        if os.path.exists(root):
            raise UserError(
                f"{path} is not a folder; give one with a subfolder of {kind.plural} per class"
            )
        raise UserError(f"no such folder of {kind.plural}: {path}")
    unused = UnusedFiles(root)
    try:
        folders = split_folders(root, kind, unused)
        classes, parts = _listed(root, folders, kind, unused, validation, test)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    for split, files in parts.items():
        if not any(files):
            raise UserError(_without_files(root, split, folders.get(split), kind))
    unused.warn()
    return Listing(root, tuple(classes), parts, folders)


def _listed(
    root: str,
    folders: Mapping[str, str],
    kind: Kind,
    unused: UnusedFiles,
    validation: float,
    test: float,
) -> tuple[list[str], dict[str, list[list[ClassFile]]]]:
    """Returns the class names and, for each split, the files of each class."""
    classes = _list(folders.get("train", root), kind, unused)
    names = [printable(name) for name in classes]
    files = list(classes.values())
    if not folders:
        return names, _split(names, files, kind, validation, test)
    unused.add_loose_files(root, kind)
    if "validation" in folders:
        held_out = _list_known(folders["validation"], classes, kind, unused)
        parts = {"train": files, "validation": held_out}
    else:
        parts = _split(names, files, kind, validation, 0.0)
    if "test" in folders:
        parts["test"] = _list_known(folders["test"], classes, kind, unused)
    for split in sorted(folders.keys() - {"train"}):
        _warn_if_same(parts["train"], parts[split], folders["train"], folders[split], kind)
    return names, parts


def _without_files(root: str, split: str, folder: str | None, kind: Kind) -> str:
    """Describes why a split is empty and suggests a remedy."""
    if folder is None:
        return (
            f"{root} has too few {kind.plural}: none was assigned to the {split} split; add "
            f"{kind.plural} or set --data.{split}-fraction"
        )
    loose = count_loose_files(folder, kind)
    found = f" ({kind.plural} outside class folders: {loose:,})" if loose else ""
    return (
        f"{folder} has no class folders with {kind.plural}{found}; sort the {kind.plural} into one "
        "folder per class or move the folder away"
    )


def _split(
    classes: Sequence[str],
    files: list[list[ClassFile]],
    kind: Kind,
    validation: float,
    test: float,
) -> dict[str, list[list[ClassFile]]]:
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
            f"{len(held_out)} of {len(classes)} classes have too few {kind.plural}: all of them "
            f"are held out for validation or test: {format_names(held_out, most=_LISTED_CLASSES)}; "
            f"add {kind.plural}, create the folders train, val and test, or hold nothing out "
            "(--data.validation-fraction 0 --data.test-fraction 0)"
        )
    return parts


def _list(folder: str, kind: Kind, unused: UnusedFiles) -> dict[str, list[ClassFile]]:
    """Returns the files by class name; folder names equal in NFC are one class."""
    found = {name: find_files(os.path.join(folder, name), kind) for name in folders_in(folder)}
    check_no_splits_below(folder, {name: contents.folders for name, contents in found.items()})
    classes: dict[str, list[ClassFile]] = {}
    for name, contents in found.items():
        place = os.path.join(folder, name)
        if contents.files:
            classes.setdefault(to_nfc(name), []).extend(contents.files)
            unused.add(place, contents.unused)
        elif contents.unused.keys() == {"workdirs of runs"}:
            unused.add(place, contents.unused)
        elif contents.unused:
            raise UserError(
                f"{place} contains no {kind.plural} ({', '.join(kind.suffixes)}), only other files "
                f"({format_counts(contents.unused)}); convert them or move the folder away"
            )
        else:
            unused.add(place, "empty")
    if len(classes) < 2:
        raise UserError(_too_few_classes(folder, found, kind))
    unused.add_loose_files(folder, kind)
    return classes


def _too_few_classes(folder: str, found: Mapping[str, Contents], kind: Kind) -> str:
    with_files = {name: contents for name, contents in found.items() if contents.files}
    present = f"only {printable(next(iter(with_files)))!r}" if with_files else "none"
    loose = count_loose_files(folder, kind)
    text = f"{folder} must contain folders for at least two classes, has {present}"
    if loose:
        text += f"; {kind.plural} outside class folders: {loose:,}"
    for name, contents in with_files.items():
        if contents.folders:
            text += f"; {name} contains the folders {format_names(sorted(contents.folders))}"
    return text


def _list_known(
    folder: str, classes: Iterable[str], kind: Kind, unused: UnusedFiles
) -> list[list[ClassFile]]:
    """Lists the files of each class in a split folder, in which classes may be missing."""
    files = {name: [] for name in classes}
    unknown = []
    for name in folders_in(folder):
        contents = find_files(os.path.join(folder, name), kind)
        unused.add(os.path.join(folder, name), contents.unused)
        if to_nfc(name) in files:
            files[to_nfc(name)] += contents.files
        elif contents.files:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{folder} has classes that are not in the training folder: {format_names(unknown)}"
            f"{did_you_mean(unknown[0], files)}"
        )
    unused.add_loose_files(folder, kind)
    return list(files.values())


def _warn_if_same(
    train: Sequence[Sequence[ClassFile]],
    other: Sequence[Sequence[ClassFile]],
    train_folder: str,
    folder: str,
    kind: Kind,
) -> None:
    """Warns if all files of another split are also in the training split."""
    paths = {file.name: file.path for of_class in train for file in of_class}
    files = [file for of_class in other for file in of_class]
    if not files or any(file.name not in paths for file in files):
        return
    sample = files[:: -(-len(files) // _COMPARED_FILES)]
    if all(filecmp.cmp(paths[file.name], file.path, shallow=False) for file in sample):
        _LOGGER.warning(
            "the %s in %s are the same as in %s: scores on them do not measure generalization",
            kind.plural,
            printable(folder),
            printable(train_folder),
        )
