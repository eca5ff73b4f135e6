"""Detection of split folders, as opposed to class folders."""

import os
from collections.abc import Mapping, Sequence

from flaxdl.data.class_folders import (
    Kind,
    UnusedFiles,
    find_files,
    folders_in,
    format_names,
    to_nfc,
)
from flaxdl.errors import UserError

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_folders(root: str, kind: Kind, unused: UnusedFiles) -> dict[str, str]:
    """Finds the split folders in a folder of classes.

    Folders are splits if one named `train` or `training`, ignoring case, contains folders.
    Otherwise they are classes.

    Args:
        root: path of the folder.
        kind: kind of the files in the class folders.
        unused: collection to which folders that are not splits are added.

    Returns:
        The path of each split's folder; empty if the folders in `root` are classes.

    Raises:
        UserError: if two folders are for the same split, or if splits and classes cannot be
            distinguished.
        OSError: if a folder cannot be read.
    """
    names = folders_in(root)
    splits = {name: split for name in names if (split := split_named(name))}
    inner = {name: folders_in(os.path.join(root, name)) for name in splits}
    if not any(inner[name] for name, split in splits.items() if split == "train"):
        _check_classes(root, names, splits, inner)
        return {}
    found: dict[str, str] = {}
    for name, split in splits.items():
        if split in found:
            raise UserError(
                f"{root} must have only one folder for the {split} split, has "
                f"{os.path.basename(found[split])} and {name}"
            )
        if inner[name] or split != "test":
            found[split] = os.path.join(root, name)
        else:
            unused.add(os.path.join(root, name), "no class folders inside")
    _check_others(root, [name for name in names if name not in splits], found, kind, unused)
    return found


def split_named(name: str) -> str | None:
    """Returns the split denoted by a folder name, ignoring case; None for other names."""
    return _SPLITS.get(name.casefold())


def _check_others(
    root: str, names: Sequence[str], splits: Mapping[str, str], kind: Kind, unused: UnusedFiles
) -> None:
    """Records folders next to the split folders as unused.

    Raises:
        UserError: if `train` is the only split and other folders contain data, since `train`
            might then be a class.
    """
    counts = {}
    for name in names:
        contents = find_files(os.path.join(root, name), kind)
        if contents.files:
            counts[name] = len(contents.files)
            unused.add(os.path.join(root, name), f"{kind.plural}: {len(contents.files):,}")
        else:
            unused.add(os.path.join(root, name), contents.unused)
    if counts and len(splits) == 1:
        train = os.path.basename(splits["train"])
        raise UserError(
            f"{root}/{train} contains folders ({format_names(folders_in(splits['train']))}) like a "
            f"training split, but there are also {kind.plural} in {format_names(counts)}. If "
            f"{train} is a class, move its {kind.plural} out of its subfolders; if it is the "
            f"training split, move the other folders out of {root}"
        )


def _check_classes(
    root: str,
    names: Sequence[str],
    splits: Mapping[str, str],
    inner: Mapping[str, Sequence[str]],
) -> None:
    """Raises a UserError if folders read as classes seem to be splits."""
    if len(splits) == len(names) and len(set(splits.values())) > 1:
        raise UserError(
            f"the folders {format_names(names)} in {root} are named like splits, but there is no "
            "folder train that contains a folder for each class"
        )
    others = {to_nfc(name) for name in names if name not in splits}
    for name, below in inner.items():
        if common := others & set(map(to_nfc, below)):
            raise UserError(
                f"{root}/{name} contains folders with the same names as those next to it "
                f"({format_names(sorted(common))}), so it seems to be a split; move the training "
                f"files to {root}/train"
            )


def check_no_splits_below(root: str, folders: Mapping[str, Sequence[str]]) -> None:
    """Checks that no class folder contains split folders, since their files would be mixed.

    Args:
        root: path of the folder.
        folders: names of the immediate subfolders of each class folder.

    Raises:
        UserError: if a class folder contains folders for two or more splits.
    """
    for name, below in folders.items():
        named = [folder for folder in below if split_named(folder)]
        if len({split_named(folder) for folder in named}) > 1:
            raise UserError(
                f"{root}/{name} contains {format_names(sorted(named))}, which are named like "
                f"splits; split folders must contain the class folders, not the other way around"
            )
