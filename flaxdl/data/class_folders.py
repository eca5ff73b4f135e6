"""Walking folders of images: what is an image, what is not used, and under which name.

Names are compared in Unicode's composed form (NFC), so that a folder that was copied from one
system to another gives the same classes and splits. Hidden files and folders, those that operating
systems make, and workdirs of runs are no data.
"""

import logging
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from flaxdl.data.image_files import SUFFIXES, is_image

_LOGGER = logging.getLogger(__name__)

_SYSTEM_FOLDERS = frozenset(
    name.casefold()
    for name in (
        *("__MACOSX", "@eaDir", "#recycle", "lost+found", "__pycache__"),
        *("$RECYCLE.BIN", "System Volume Information"),
    )
)
_SYSTEM_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_WORKDIR_FOLDERS = frozenset(("checkpoints", "events", "profile"))
_SUFFIXES_OF_0_1_0 = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_IMAGE = "image"
_SHOWN_FOLDERS = 20  # of those with files that are not used


class ImageFile(NamedTuple):
    """An image in a class folder."""

    path: str
    name: str
    """Its class folder and its place below, as in `cat/2023/1.png`, in NFC."""

    @property
    def name_in_0_1_0(self) -> str | None:
        """Its name for flaxdl 0.1.0; None if that did not read it."""
        name = "/".join(self.path.split(os.sep)[-2:])
        suffix = os.path.splitext(name)[1].lower()
        is_read = composed(name) == self.name and suffix in _SUFFIXES_OF_0_1_0
        return name if is_read else None


@dataclass
class Contents:
    """Images, folders and unused files below a class folder."""

    images: list[ImageFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """Names of the folders directly below."""
    unused: Counter[str] = field(default_factory=Counter)
    """Kind, such as `.heic` or `broken links`, and the number of files."""


class Unused:
    """Files and folders that are not used, to be named once and together."""

    def __init__(self, root: str):
        self._root = root
        self._lines: list[str] = []

    def add(self, folder: str, what: str | Counter[str]) -> None:
        """Notes what is not used in a folder: in words, or the number of files of each kind."""
        if what:
            place = os.path.relpath(folder, self._root)
            said = what if isinstance(what, str) else counted(what)
            self._lines.append(said if place == "." else f"{printable(place)}: {said}")

    def add_loose_images(self, folder: str) -> None:
        """Notes the images that lie directly in a folder of folders."""
        if count := count_loose_images(folder):
            self.add(folder, f"images outside class folders: {count:,}")

    def warn(self) -> None:
        """Logs everything that was noted."""
        if self._lines:
            more = len(self._lines) - _SHOWN_FOLDERS
            shown = self._lines[:_SHOWN_FOLDERS] + [f"and {more} more folders"] * (more > 0)
            _LOGGER.warning("not used in %s:\n  %s", printable(self._root), "\n  ".join(shown))


def find_images(folder: str) -> Contents:
    """Finds the images below a class folder, at any depth, in the order of their names.

    Links are followed, but no folder is read twice, nor one that contains the class folder.

    Raises:
        OSError: if a folder cannot be read.
    """
    contents = Contents()
    # Links come last, so that a folder is read under its own name if that is below as well.
    pending = deque([(folder, os.path.basename(folder))])
    seen = {_identity(str(parent)) for parent in Path(folder).absolute().parents}
    while pending:
        path, name = pending.popleft()
        if (identity := _identity(path)) in seen:
            contents.unused["links to folders already read"] += 1
            continue
        seen.add(identity)
        entries = _entries(path)
        if _is_workdir(entries):
            contents.unused["workdirs of runs"] += 1
            continue
        for entry in entries:
            below = (entry.path, f"{name}/{entry.name}")
            if _is_folder(entry):
                if is_data_folder(entry.name):
                    (pending.append if entry.is_symlink() else pending.appendleft)(below)
                    if path == folder:
                        contents.folders.append(composed(entry.name))
            elif (kind := _kind(entry)) == _IMAGE:
                contents.images.append(ImageFile(entry.path, composed(below[1])))
            elif kind is not None:
                contents.unused[kind] += 1
    contents.images.sort(key=lambda image: image.name.split("/"))
    return contents


def folders_in(folder: str) -> list[str]:
    """Names of the folders that may be classes or splits, in the order of their composed forms.

    Raises:
        OSError: if the folder cannot be read.
    """
    entries = _entries(folder)
    skipped = _WORKDIR_FOLDERS if _is_workdir(entries) else frozenset()
    names = (
        entry.name
        for entry in entries
        if is_data_folder(entry.name) and entry.name not in skipped and _is_folder(entry)
    )
    return sorted(names, key=composed)


def count_loose_images(folder: str) -> int:
    """The number of images that lie directly in a folder of folders."""
    entries = _entries(folder)
    if _is_workdir(entries):
        return 0
    return sum(not _is_folder(entry) and _kind(entry) == _IMAGE for entry in entries)


def is_data_folder(name: str) -> bool:
    """Returns whether a folder of this name may hold data, being neither hidden nor a system's."""
    return not name.startswith(".") and name.casefold() not in _SYSTEM_FOLDERS


def composed(name: str) -> str:
    """A name in NFC, whichever form a file system gives it."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """A name with its bytes that are no UTF-8 as in `caf\\xe9`, so that it can be written."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def counted(kinds: Counter[str]) -> str:
    """Kinds and how many there are, as in `.heic: 2, .txt: 1`."""
    ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{printable(kind)}: {count:,}" for kind, count in ordered)


def listed(names: Iterable[str], most: int = 10) -> str:
    """Names, of which the first so many are shown."""
    names = [printable(name) for name in names]
    more = [f"{len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _is_workdir(entries: Iterable[os.DirEntry[str]]) -> bool:
    paths = {entry.name: entry.path for entry in entries if not entry.name.startswith(".")}
    if "config.json" in paths:
        return bool(paths.keys() & {"checkpoints", "metrics.jsonl"})
    # What --find-learning-rate and --profile leave before a run begins.
    if not paths or not paths.keys() <= {"learning_rate.png", "profile"}:
        return False
    return "profile" not in paths or os.path.isdir(os.path.join(paths["profile"], "plugins"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _kind(entry: os.DirEntry[str]) -> str | None:
    """The kind under which a file is counted; None for files that are never data."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("._") or entry.name.casefold() in _SYSTEM_FILES:
        return None
    try:
        if not entry.is_file():
            return "broken links" if entry.is_symlink() else "special files"
    except OSError:
        return "broken links"
    if entry.name.startswith("."):
        return "hidden images" if suffix in SUFFIXES else None
    return _IMAGE if is_image(entry.path) else suffix or "without suffix"
