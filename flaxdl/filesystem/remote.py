"""Folders in buckets (`gs://`, `s3://`) and other remote file systems, through fsspec."""

import random
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.remote_errors import (
    denied_message,
    is_denied,
    is_transient,
    is_unsupported,
    reason,
    underlying,
)
from flaxdl.filesystem.remote_systems import file_system
from flaxdl.filesystem.remote_urls import BUCKETS, is_url, split_url

__all__ = ["RemoteFolder", "Stamp", "is_url"]

FIRST_DELAY = 0.5  # seconds before the first retry; doubled before each further one
LONGEST_DELAY = 20.0  # seconds
GIVE_UP_AFTER = 120.0  # seconds; no retry starts later than this after the first failure
_PART = 1 << 24  # bytes; large files are uploaded in parts, several of which are in memory

_CHANGES = ("ETag", "LastModified", "generation", "mtime", "created", "Last-Modified")
_METADATA = {"gs": "metadata", "s3": "Metadata"}  # keywords of the file systems
_Result = TypeVar("_Result")


class Stamp(NamedTuple):
    """Size and version of a remote file, which differ after a change."""

    size: int | None
    """Size in bytes; None if the server does not state it."""
    version: str
    """Entity tag, generation and time of the last change, as far as the server states them."""


class RemoteFolder:
    """A folder in a bucket, or of any other file system that fsspec supports.

    Names of files are relative to the folder, with forward slashes. All methods may be called from
    several threads. Transient failures (5xx, 429, timeouts, lost connections) are retried with
    increasing delays for `GIVE_UP_AFTER` seconds.

    Every method raises:
        PermissionError: if credentials are missing, expired or not sufficient.
        FileNotFoundError: if there is no such file or bucket.
        OSError: if the operation fails for another reason, or still fails after the retries.

    Attributes:
        url: URL of the folder, without a trailing slash.
    """

    def __init__(self, url: str):
        """Opens a folder without a request; it need not exist.

        Raises:
            UserError: if the URL has no known scheme or no bucket, or a package is missing.
        """
        self._scheme, self.url = split_url(url)
        self._files = file_system(self._scheme, self.url)
        self._root = self._files._strip_protocol(self.url).rstrip("/")

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of all files in the folder and below that start with a prefix, sorted.

        The listing is never taken from a cache. It is empty if there is no such folder.
        """
        start = f"{self._root}/"
        folder = start + prefix.rpartition("/")[0]
        try:
            paths = self._retried(prefix, lambda: self._find(folder.rstrip("/")))
        except FileNotFoundError:
            return []
        names = (path[len(start) :] for path in paths if path.startswith(start))
        return sorted(
            name for name in names if name.startswith(prefix) and name[-1:] not in ("", "/")
        )

    def stamps(self, give_up_after: float | None = None) -> dict[str, Stamp]:
        """Returns the stamps of all files in the folder and below, by name.

        If the URL is that of a file, as always with `http`, its name is an empty string.

        Args:
            give_up_after: seconds instead of `GIVE_UP_AFTER`.
        """

        def listed() -> dict[str, dict]:
            if self._scheme in ("http", "https"):
                return {self._root: self._files.info(self._root)}
            return self._find(self._root, detail=True)

        files = self._retried("", listed, give_up_after)
        return {
            path[len(self._root) + 1 :]: Stamp(
                info.get("size"), "; ".join(str(info[key]) for key in _CHANGES if info.get(key))
            )
            for path, info in sorted(files.items())
            if not path.endswith("/")
        }

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        return self._retried(name, lambda: self._files.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file; one of the same name is replaced."""
        self._retried(name, lambda: self._files.pipe_file(self._path(name), data))

    def download(
        self, name: str, path: Path, progress: Callable[[int], object] | None = None
    ) -> None:
        """Copies a file to a local path, where it appears complete or not at all.

        Args:
            name: name of the file; if the URL is that of a file, an empty string.
            path: local path; its folder must exist.
            progress: called now and then with the number of bytes that have arrived.
        """
        from fsspec.callbacks import Callback

        hooks = {"": lambda _, received: progress(received)} if progress else {}

        with atomic_write(path) as unfinished:
            options = {"callback": Callback(hooks=hooks)}
            self._retried(
                name, lambda: self._files.get_file(self._path(name), str(unfinished), **options)
            )

    def upload(self, path: Path, name: str) -> None:
        """Copies a local file, of any size, into the folder; one of the same name is replaced."""
        path.stat()  # a missing local file is not a missing bucket
        options = {"chunksize": _PART} if self._scheme in BUCKETS else {}
        self._retried(name, lambda: self._files.put_file(str(path), self._path(name), **options))

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless there is one of this name, and returns True if it was written.

        Of several callers one writes the file, if the server supports conditional requests (Amazon
        S3, Google Cloud Storage, local files); otherwise, callers at the same moment may all.
        """
        path, token = self._path(name), secrets.token_hex()

        def write() -> bool:
            # Servers that ignore the condition would replace the file.
            if not self._exists(path):
                with suppress(FileExistsError):
                    self._create(path, data, token)
                    return True
            # An earlier attempt may have written the file before its connection was lost; the
            # HTTP client repeats requests too.
            with suppress(FileNotFoundError, KeyError):  # a file that `write` has replaced has none
                return self._scheme in _METADATA and token == self._files.getxattr(path, "token")
            return False

        return self._retried(name, write)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; those that do not exist are skipped."""
        for name in names:
            with suppress(FileNotFoundError):
                self._retried(name, lambda name=name: self._files.rm_file(self._path(name)))

    def _exists(self, path: str) -> bool:
        try:
            self._files.info(path)  # `exists` of fsspec is False also if the request fails
        except FileNotFoundError:
            return False
        return True

    def _create(self, path: str, data: bytes, token: str) -> None:
        """Writes a file, or raises FileExistsError, if the server supports this."""
        if self._scheme == "file":
            with self._files.open(path, "xb") as file:
                file.write(data)
            return
        metadata = _METADATA.get(self._scheme)
        options = {metadata: {"token": token}} if metadata else {}
        try:
            self._files.pipe_file(path, data, mode="create", **options)
        except OSError as error:
            if not is_unsupported(error):
                raise
            self._files.pipe_file(path, data, **options)

    def _find(self, path: str, **options: Any) -> Any:
        if self._scheme == "file" and self._files.exists(path):  # otherwise, errors are skipped
            options["on_error"] = "raise"
        return self._files.find(path, **options)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _retried(
        self, name: str, operation: Callable[[], _Result], give_up_after: float | None = None
    ) -> _Result:
        """Returns the result of an operation on a file, repeated after transient failures."""
        url = f"{self.url}/{name}".rstrip("/")
        give_up_after = GIVE_UP_AFTER if give_up_after is None else give_up_after
        first_failure = None
        delay = FIRST_DELAY
        while True:
            try:
                return operation()
            except Exception as raised:
                error = underlying(raised)
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(f"{url} does not exist, or its bucket") from error
                if is_denied(error):
                    self._files = file_system(self._scheme, self.url)  # reads a new login
                    raise PermissionError(denied_message(url, self._scheme, error)) from error
                if not is_transient(error):
                    raise OSError(f"{url}: {reason(error)}") from error
                wait = delay * random.uniform(0.5, 1.0)
                now = time.monotonic()
                first_failure = first_failure or now
                if now + wait > first_failure + give_up_after:
                    raise OSError(f"{url}: {reason(error)}; retries did not help") from error
            time.sleep(wait)
            delay = min(2 * delay, LONGEST_DELAY)
