"""Snapshots of a local folder in a bucket: immutable objects, and manifests that name them.

    objects/WRITER/000012/NAME         content of a file, which never changes
    snapshots/000012-WRITER-DIGEST.json    name, object, size and SHA-256 of each file

A manifest is written last, so a snapshot is complete or does not exist. Its name contains its own
digest. A file may be an object of an earlier snapshot. Writers have random names, so two of them
never write to the same object.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Self

from flaxdl.errors import UserError
from flaxdl.filesystem.remote import RemoteFolder

_THREADS = 8  # of small files, most of the time is the answer of the server
_KEPT = 2  # snapshots
_NAME = re.compile(r"snapshots/(\d{6,})-([0-9a-f]+)-([0-9a-f]+)\.json")


class DamagedSnapshot(UserError):
    """Raised when an object of a snapshot is missing or has another content."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a snapshot."""

    object: str
    """Name of the object with its content."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content, in hexadecimal."""


@dataclass(frozen=True)
class Snapshot:
    """The files of a folder at one time, by path relative to the folder."""

    number: int
    writer: str
    files: Mapping[str, StoredFile]

    @property
    def name(self) -> str:
        """Name of its manifest."""
        digest = hashlib.sha256(self.manifest).hexdigest()[:16]
        return f"snapshots/{self.number:06}-{self.writer}-{digest}.json"

    @property
    def manifest(self) -> bytes:
        """Content of its manifest."""
        files = {name: asdict(file) for name, file in sorted(self.files.items())}
        return (json.dumps(files, indent=1) + "\n").encode()

    @classmethod
    def parse(cls, name: str, manifest: bytes) -> Self:
        """Reads a snapshot from the name and the content of its manifest.

        Raises:
            DamagedSnapshot: if the content does not match the name, or names a file outside of the
                folder.
        """
        match = _NAME.fullmatch(name)
        if match is None or not hashlib.sha256(manifest).hexdigest().startswith(match[3]):
            raise DamagedSnapshot(f"{name} is damaged")
        try:
            files = {key: StoredFile(**value) for key, value in json.loads(manifest).items()}
        except (ValueError, TypeError, AttributeError):
            raise DamagedSnapshot(f"{name} is not a manifest") from None
        for path in map(PurePath, files):
            if path.is_absolute() or ".." in path.parts:
                raise DamagedSnapshot(f"{name} contains {str(path)!r}, outside of its folder")
        return cls(int(match[1]), match[2], files)


class Snapshots:
    """The snapshots in a remote folder.

    Args:
        remote: folder in a bucket.
        writer: random name, in hexadecimal, of the process that writes snapshots.
    """

    def __init__(self, remote: RemoteFolder, writer: str):
        self.remote = remote
        self._writer = writer
        self._threads = ThreadPoolExecutor(_THREADS, "snapshots")

    def names(self) -> list[str]:
        """Returns the names of all snapshots, newest first.

        Raises:
            OSError: if the bucket cannot be read.
        """
        found = self.remote.names("snapshots/")
        return sorted((name for name in found if _NAME.fullmatch(name)), key=_order, reverse=True)

    def read(self, name: str) -> Snapshot:
        """Reads a snapshot, without the contents of its files.

        Raises:
            DamagedSnapshot: if its manifest is damaged or no longer exists.
            OSError: if the bucket cannot be read.
        """
        try:
            return Snapshot.parse(name, self.remote.read(name))
        except FileNotFoundError:
            raise DamagedSnapshot(f"{name} no longer exists") from None

    def upload(self, number: int, files: Mapping[str, Path | StoredFile]) -> Snapshot:
        """Uploads the files of a snapshot, which exists once `commit` has written its manifest.

        Args:
            number: number of the snapshot, greater than that of any other, committed or not.
            files: each file by its name in the snapshot: the path of a local file, which must not
                change meanwhile, or a file of an earlier snapshot.

        Raises:
            OSError: if a file cannot be read, or the bucket cannot be written.
        """

        def stored(item: tuple[str, Path | StoredFile]) -> StoredFile:
            name, file = item
            if isinstance(file, StoredFile):
                return file
            target = f"objects/{self._writer}/{number:06}/{name}"
            size, sha256 = file.stat().st_size, _sha256(file)
            self.remote.upload(file, target)
            return StoredFile(target, size, sha256)

        found = dict(zip(files, self._threads.map(stored, files.items()), strict=True))
        return Snapshot(number, self._writer, found)

    def commit(self, snapshot: Snapshot) -> None:
        """Writes the manifest of an uploaded snapshot.

        Raises:
            OSError: if the bucket cannot be written; the manifest may have been written even then.
        """
        self.remote.write(snapshot.name, snapshot.manifest)

    def fetch(self, files: Mapping[str, StoredFile], folder: Path) -> dict[str, str]:
        """Downloads files to a folder, unless it contains them already, and verifies them.

        Returns:
            What is wrong with the files that are damaged, by name; they are not downloaded.

        Raises:
            OSError: if the bucket cannot be read, or the folder cannot be written.
        """

        def fetch_one(item: tuple[str, StoredFile]) -> tuple[str, str | None]:
            return item[0], self._fetch(item[1], folder / item[0])

        found = self._threads.map(fetch_one, files.items())
        return {name: damage for name, damage in found if damage is not None}

    def _fetch(self, file: StoredFile, path: Path) -> str | None:
        if is_same(path, file):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        unverified = path.with_name(f".{path.name}.unverified")
        try:
            self.remote.download(file.object, unverified)
            if _sha256(unverified) != file.sha256:
                return "changed"
            unverified.replace(path)
        except FileNotFoundError:
            return "missing"
        finally:
            with contextlib.suppress(OSError):
                unverified.unlink(missing_ok=True)
        return None

    def remove_old(self, newest: Snapshot) -> None:
        """Removes all but the newest snapshots, and objects that none of the others names.

        Manifests are removed before objects. Objects that another writer may be about to name are
        kept. If a snapshot that is kept cannot be read, nothing is removed.

        Args:
            newest: the newest snapshot of this writer.

        Raises:
            DamagedSnapshot: if a manifest is damaged.
            OSError: if the bucket cannot be read or written.
        """
        names = self.names()
        own = [name for name in names if _writer(name) == self._writer]
        kept = {*names[:_KEPT], *own[:_KEPT], newest.name}
        named = {
            file.object
            for name in kept
            for file in (newest if name == newest.name else self.read(name)).files.values()
        }
        objects = self.remote.names("objects/")
        self.remote.remove(name for name in names if name not in kept)
        self.remote.remove(
            name for name in objects if name not in named and not self._is_newer(name, newest)
        )

    def _is_newer(self, object_name: str, snapshot: Snapshot) -> bool:
        """Returns True if an object is of another writer, and its number not below a snapshot's."""
        _, writer, number, *_ = object_name.split("/")
        return writer != self._writer and int(number) >= snapshot.number


def is_same(path: Path, file: StoredFile) -> bool:
    """Returns True if a local file has the content of a stored one."""
    return path.is_file() and path.stat().st_size == file.size and _sha256(path) == file.sha256


def number_of(name: str) -> int:
    """Returns the number of a snapshot, given the name of its manifest."""
    return _order(name)[0]


def _order(name: str) -> tuple[int, str]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), match[2]


def _writer(name: str) -> str:
    return _order(name)[1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
