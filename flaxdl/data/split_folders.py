"""Which folders are splits, and which are classes."""

import os
from collections.abc import Mapping, Sequence

from flaxdl.data.class_folders import (
    Unused,
    composed,
    find_images,
    folders_in,
    listed,
)
from flaxdl.errors import UserError

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_folders(root: str, unused: Unused) -> dict[str, str]:
    """Finds the folders for the splits; there are none if the folders of `root` are classes.

    Folders are splits where one that is called `train` or `training` holds folders. Names are
    compared without case.

    Args:
        root: the folder of images.
        unused: where folders are noted that are no splits.

    Returns:
        Split → path of its folder.

    Raises:
        UserError: if two folders are for the same split, or it cannot be decided whether folders
            are splits or classes.
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
                f"{root} must have one folder for the {split} split, got "
                f"{os.path.basename(found[split])} and {name}"
            )
        if inner[name] or split != "test":
            found[split] = os.path.join(root, name)
        else:
            unused.add(os.path.join(root, name), "no class folders in it")
    _check_others(root, [name for name in names if name not in splits], found, unused)
    return found


def split_named(name: str) -> str | None:
    """The split that a folder's name stands for, if any."""
    return _SPLITS.get(name.casefold())


def _check_others(
    root: str, names: Sequence[str], splits: Mapping[str, str], unused: Unused
) -> None:
    """Notes the folders beside the splits, which might be classes if there is only `train`."""
    images = {}
    for name in names:
        contents = find_images(os.path.join(root, name))
        if contents.images:
            images[name] = len(contents.images)
            unused.add(os.path.join(root, name), f"images: {len(contents.images):,}")
        else:
            unused.add(os.path.join(root, name), contents.unused)
    if images and len(splits) == 1:
        train = os.path.basename(splits["train"])
        raise UserError(
            f"{root}/{train} contains folders ({listed(folders_in(splits['train']))}) like a "
            f"training split, but there are also images in {listed(images)}. If {train} is a "
            f"class, move its images out of these folders; if it is the training split, move the "
            f"other folders out of {root}"
        )


def _check_classes(
    root: str,
    names: Sequence[str],
    splits: Mapping[str, str],
    inner: Mapping[str, Sequence[str]],
) -> None:
    """Refuses folders that would be classes but are named like splits, and seem to be some."""
    if len(splits) == len(names) and len(set(splits.values())) > 1:
        raise UserError(
            f"the folders {listed(names)} of {root} are named like splits, but there is no folder "
            "train with a folder for each class in it"
        )
    others = {composed(name) for name in names if name not in splits}
    for name, below in inner.items():
        if common := others & set(map(composed, below)):
            raise UserError(
                f"{root}/{name} contains folders that are named like those next to it "
                f"({listed(sorted(common))}), so it seems to be a split; move the training images "
                f"to {root}/train"
            )


def check_no_splits_below(root: str, folders: Mapping[str, Sequence[str]]) -> None:
    """Refuses splits inside of class folders, whose images would be mixed.

    Args:
        root: the folder of images.
        folders: class folder → names of the folders directly below.

    Raises:
        UserError: naming the first class folder with two splits or more.
    """
    for name, below in folders.items():
        named = [folder for folder in below if split_named(folder)]
        if len({split_named(folder) for folder in named}) > 1:
            raise UserError(
                f"{root}/{name} contains {listed(sorted(named))}, which are named like splits; "
                f"split folders must contain the class folders, not the other way around"
            )
