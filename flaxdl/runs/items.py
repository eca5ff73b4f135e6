"""Inputs for prediction: files, folders of files, texts, and files that list them."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flaxdl.data import Transform
from flaxdl.data.class_folders import is_data_folder
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path

_LOGGER = logging.getLogger(__name__)
_SHOWN = 20  # reasons listed in a message


@dataclass(frozen=True)
class SkippedItem:
    """An item without a prediction, and the reason."""

    item: str
    """File name or text."""
    error: str
    """Reason why the item has no prediction."""


def summary(unreadable: Sequence[SkippedItem], total: int) -> str:
    """Returns a message that says how many items have no prediction, and why."""
    reasons = [
        one.error if one.item in one.error else f"{one.item!r}: {one.error}" for one in unreadable
    ]
    if total == 1:
        return reasons[0]
    shown = [*reasons[:_SHOWN], *([f"and {len(reasons) - _SHOWN} more"] * (len(reasons) > _SHOWN))]
    return f"{len(reasons):,} of {total:,} items have no prediction:\n  " + "\n  ".join(shown)


def read_items(path: str) -> list[str]:
    """Reads texts or file names, one per line; skips blank lines and logs their number.

    Args:
        path: path of a UTF-8 file, or `-` for standard input.

    Raises:
        UserError: if the file cannot be read, or has no items.
    """
    file = input_path(path)
    try:
        if path == "-" and sys.stdin is None:
            raise OSError("standard input is closed")
        data = sys.stdin.buffer.read() if path == "-" else file.read_bytes()
        lines = data.decode("utf-8-sig").split("\n")  # not splitlines: U+2028 is part of a text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}") from error
    lines = [line.removesuffix("\r") for line in lines]
    items = [line for line in lines if line.strip()]
    if not items:
        raise UserError(f"{path} contains no texts or file names")
    blank = len(lines) - len(items) - (lines[-1] == "")  # a trailing newline
    if blank:
        _LOGGER.warning("%s: skipped %d blank %s", path, blank, "line" if blank == 1 else "lines")
    return items


def expand_items(items: Sequence[str], transform: Transform) -> list[str | SkippedItem]:
    """Replaces each folder by the files in it that a transform can read, sorted by name.

    Folders are searched recursively, except for hidden folders and those created by operating
    systems; those at URLs are copied to the cache folder first. The number of other files is logged
    once per folder. Texts are returned unchanged.

    Returns:
        The items, with a `SkippedItem` for each one already known to be unreadable.
    """
    if not transform.file_suffixes:
        return list(items)
    return [found for item in items for found in _expanded(item, transform)]


def _expanded(item: str, transform: Transform) -> list[str | SkippedItem]:
    if not item:
        return [SkippedItem(item, "an empty string is not a file name")]
    if item == "-":
        return [
            SkippedItem(item, "'-' is not a file; to read file names from stdin, use --from-file -")
        ]
    try:
        path = input_path(item)
    except UserError as error:
        return [SkippedItem(item, str(error))]
    return _files_in(item, path, transform) if os.path.isdir(path) else [item]


def _files_in(folder: str, path: Path, transform: Transform) -> list[str | SkippedItem]:
    files, others = [], Counter[str]()
    seen = set()  # visited folders, since symbolic links may form cycles
    for place, folders, names in os.walk(path, followlinks=True):
        status = os.stat(place)
        is_new = (status.st_dev, status.st_ino) not in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if is_new and is_data_folder(name)]
        for name in names if is_new else ():
            file = os.path.join(place, name)
            if name.startswith("."):
                others["hidden"] += 1
            elif transform.reads_file(file):
                files.append(file)
            else:
                others[Path(name).suffix.lower() or "without suffix"] += 1
    counted = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5))
    if not files:
        passed = f"; found {counted}" if others else ""
        error = (
            f"{folder} contains no supported files ({', '.join(transform.file_suffixes)}){passed}"
        )
        return [SkippedItem(folder, error)]
    if others:
        _LOGGER.warning("%s: skipped %d files: %s", folder, others.total(), counted)
    return sorted(files)
