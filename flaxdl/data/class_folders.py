"""Finds the files of each class in a folder of images or sounds and counts unused files.

Names are compared in Unicode normalization form C (NFC), so that a folder copied from one system
to another gives the same classes and splits. Hidden files and folders, those created by operating
systems, and workdirs of runs are ignored.
"""

import logging
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
_WANTED = "wanted"
_SHOWN_FOLDERS = 20  # in the warning about unused files


@dataclass(frozen=True)
class Kind:
    """Kind of files to find, such as images."""

    noun: str
    """Singular noun for messages."""
    suffixes: tuple[str, ...]
    """Usual suffixes, for messages."""
    matches: Callable[[str], bool]
    """Callable that returns True if the file at a path is of this kind."""

    @property
    def plural(self) -> str:
        """Plural noun for messages."""
        return f"{self.noun}s"


class ClassFile(NamedTuple):
    """A file in a class folder."""

    path: str
    name: str
    """Path in NFC that starts with the class folder, such as `cat/2023/1.png`."""

    @property
    def name_in_0_1_0(self) -> str | None:
        """Name of an image in flaxdl 0.1.0; None if that version did not read it."""
        name = "/".join(self.path.split(os.sep)[-2:])
        suffix = os.path.splitext(name)[1].lower()
        is_read = to_nfc(name) == self.name and suffix in _SUFFIXES_OF_0_1_0
        return name if is_read else None


@dataclass
class Contents:
    """Files, subfolders and unused files of a class folder."""

    files: list[ClassFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """Names of the immediate subfolders, in NFC."""
    unused: Counter[str] = field(default_factory=Counter)
    """Number of unused files of each kind, such as `.heic` or `broken links`."""


class UnusedFiles:
    """Unused files and folders, reported in one warning."""

    def __init__(self, root: str):
        self._root = root
        self._lines: list[str] = []

    def add(self, folder: str, what: str | Counter[str]) -> None:
        """Records the unused content of a folder, as a description or as file counts by kind."""
        if what:
            place = os.path.relpath(folder, self._root)
            text = what if isinstance(what, str) else format_counts(what)
            self._lines.append(text if place == "." else f"{printable(place)}: {text}")

    def add_loose_files(self, folder: str, kind: Kind) -> None:
        """Records the files in a folder of class folders that are not in a class folder."""
        if count := count_loose_files(folder, kind):
            self.add(folder, f"{kind.plural} outside class folders: {count:,}")

    def warn(self) -> None:
        """Logs one warning with the recorded entries, if there are any."""
        if self._lines:
            more = len(self._lines) - _SHOWN_FOLDERS
            shown = self._lines[:_SHOWN_FOLDERS] + [f"and {more} more folders"] * (more > 0)
            _LOGGER.warning("unused in %s:\n  %s", printable(self._root), "\n  ".join(shown))


def find_files(folder: str, kind: Kind) -> Contents:
    """Finds the files of one kind in a class folder, at any depth, sorted by name.

    Symbolic links are followed, except to folders already visited and parents of the class folder.

    Raises:
        OSError: if a folder cannot be read.
    """
    contents = Contents()
    # Links are visited last, so that files of a folder inside the class folder keep their paths.
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
                        contents.folders.append(to_nfc(entry.name))
            elif (found := _describe(entry, kind)) == _WANTED:
                contents.files.append(ClassFile(entry.path, to_nfc(below[1])))
            elif found is not None:
                contents.unused[found] += 1
    contents.files.sort(key=lambda file: file.name.split("/"))
    return contents


def folders_in(folder: str) -> list[str]:
    """Lists the folders that may be classes or splits, sorted by their names in NFC.

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
    return sorted(names, key=to_nfc)


def count_loose_files(folder: str, kind: Kind) -> int:
    """Returns the number of files in a folder of class folders that are not in a class folder."""
    entries = _entries(folder)
    if _is_workdir(entries):
        return 0
    return sum(not _is_folder(entry) and _describe(entry, kind) == _WANTED for entry in entries)


def is_data_folder(name: str) -> bool:
    """Returns False for names of hidden folders and of folders created by operating systems."""
    return not name.startswith(".") and name.casefold() not in _SYSTEM_FOLDERS


def to_nfc(name: str) -> str:
    """Normalizes a name to NFC, since file systems differ in the Unicode form they return."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def printable(name: str) -> str:
    """Escapes the bytes of a file name that are not valid UTF-8, as in `caf\\xe9`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def format_counts(kinds: Counter[str]) -> str:
    """Formats file counts by kind, as in `.heic: 2, .txt: 1`."""
    ordered = sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{printable(kind)}: {count:,}" for kind, count in ordered)


def format_names(names: Iterable[str], most: int = 10) -> str:
    """Formats the first `most` names and the number of the remaining ones."""
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
    # Files that --find-learning-rate and --profile write before a run starts.
    if not paths or not paths.keys() <= {"learning_rate.png", "profile"}:
        return False
    return "profile" not in paths or os.path.isdir(os.path.join(paths["profile"], "plugins"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _describe(entry: os.DirEntry[str], kind: Kind) -> str | None:
    """Returns what a file is counted as; None for files that are never data."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if entry.name.startswith("._") or entry.name.casefold() in _SYSTEM_FILES:
        return None
    try:
        if not entry.is_file():
            return "broken links" if entry.is_symlink() else "special files"
    except OSError:
        return "broken links"
    if entry.name.startswith("."):
        return f"hidden {kind.plural}" if suffix in kind.suffixes else None
    return _WANTED if kind.matches(entry.path) else suffix or "without suffix"
