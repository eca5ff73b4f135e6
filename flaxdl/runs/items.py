"""What a user wants predicted: files, folders of files, texts, and lists of them."""

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flaxdl.data import Transform
from flaxdl.data.class_folders import is_data_folder
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path

_LOGGER = logging.getLogger(__name__)
_SHOWN = 20  # reasons why items are unreadable
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


@dataclass(frozen=True)
class Unreadable:
    """An item without a prediction, and why."""

    item: str
    """The file or text."""
    error: str
    """Names what was wrong with it."""


def summary(unreadable: Sequence[Unreadable], total: int) -> str:
    """Says how many of so many items have no prediction, and why the first of them have none."""
    reasons = [
        one.error if one.item in one.error else f"{one.item!r}: {one.error}" for one in unreadable
    ]
    if total == 1:
        return reasons[0]
    shown = [*reasons[:_SHOWN], *([f"and {len(reasons) - _SHOWN} more"] * (len(reasons) > _SHOWN))]
    return f"{len(reasons):,} of {total:,} items have no prediction:\n  " + "\n  ".join(shown)


def read_items(path: str) -> list[str]:
    """Reads texts or names of files, one a line; blank lines are skipped, and their number logged.

    Args:
        path: a file in UTF-8, or `-` for standard input.

    Raises:
        UserError: if it cannot be read, or has no items.
    """
    try:
        if path == "-" and sys.stdin is None:
            raise OSError("standard input is closed")
        data = sys.stdin.buffer.read() if path == "-" else local_path(path).read_bytes()
        lines = data.decode("utf-8-sig").split("\n")  # not splitlines: U+2028 is part of a text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as lines of UTF-8: {error}") from error
    lines = [line.removesuffix("\r") for line in lines]
    items = [line for line in lines if line.strip()]
    if not items:
        raise UserError(f"{path} has no lines with a text or the name of a file")
    blank = len(lines) - len(items) - (lines[-1] == "")  # the last line has an end
    if blank:
        _LOGGER.warning("%s: skipped %d blank %s", path, blank, "line" if blank == 1 else "lines")
    return items


def expand_items(items: Sequence[str], transform: Transform) -> list[str | Unreadable]:
    """Replaces folders by the files in them that a transform reads, in the order of their names.

    Files are looked for at any depth, but not in hidden folders and those that operating systems
    make. How many other files there are is logged, once for each folder. Texts stay as they are.

    Returns:
        The items, among them those that are known to be unreadable.
    """
    if not transform.file_suffixes:
        return list(items)
    return [
        found
        for item in items
        for found in (
            _files_in(item, transform)
            if item and os.path.isdir(local_path(item))
            else [_checked(item)]
        )
    ]


def _checked(item: str) -> str | Unreadable:
    if not item:
        return Unreadable(item, "an empty text is not the name of a file")
    if _URL.match(item):
        return Unreadable(item, f"{item} is a URL, which is not downloaded; save it as a file")
    if item == "-":
        return Unreadable(
            item, "'-' is not a file; to read file names from stdin, use --from-file -"
        )
    return item


def _files_in(folder: str, transform: Transform) -> list[str | Unreadable]:
    files, others = [], Counter[str]()
    seen = set()  # folders, since links may lead back
    for place, folders, names in os.walk(local_path(folder), followlinks=True):
        status = os.stat(place)
        is_new = (status.st_dev, status.st_ino) not in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if is_new and is_data_folder(name)]
        for name in names if is_new else ():
            path = os.path.join(place, name)
            if name.startswith("."):
                others["hidden"] += 1
            elif transform.reads_file(path):
                files.append(path)
            else:
                others[Path(name).suffix.lower() or "without suffix"] += 1
    counted = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5))
    if not files:
        passed = f"; it holds {counted}" if others else ""
        error = f"{folder} holds no files to predict ({', '.join(transform.file_suffixes)}){passed}"
        return [Unreadable(folder, error)]
    if others:
        _LOGGER.warning("%s: %d files are not used: %s", folder, others.total(), counted)
    return sorted(files)
