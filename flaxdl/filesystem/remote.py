"""Folders in buckets (`gs://`, `s3://`) and other remote file systems, through fsspec."""

import random
import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.remote_errors import is_denied, is_transient, is_unsupported, reason
from flaxdl.filesystem.remote_systems import file_system

FIRST_DELAY = 0.5  # seconds before the first retry; doubled before each further one
LONGEST_DELAY = 20.0  # seconds
GIVE_UP_AFTER = 120.0  # seconds; no retry starts later than this after the first failure
_PART = 1 << 24  # bytes; large files are uploaded in parts, several of which are in memory

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)  # C:/ is a drive of Windows
_LOGINS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the login of `gcloud auth application-default login` "
    "(in Colab: `google.colab.auth.authenticate_user()`), and the service account of the machine",
    "s3": "AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), AWS_PROFILE, the "
    "login of `aws configure` or `aws sso login`, and the role of the machine",
}
_METADATA = {"gs": "metadata", "s3": "Metadata"}  # keywords of the file systems
_SAME = {"gcs": "gs", "s3a": "s3"}
_Result = TypeVar("_Result")


def is_url(path: str | Path) -> bool:
    """Returns True for `scheme://...`, also as a `Path`, which turns `gs://b/x` into `gs:/b/x`."""
    match = _URL.match(path.as_posix() if isinstance(path, Path) else path)
    return match is not None and (isinstance(path, Path) or match[2] == "/")


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
        match = _URL.match(url)
        if match is None:
            raise UserError(
                f"{url} is not a URL: expected scheme://bucket/folder, such as gs://b/x"
            )
        scheme = match[1].lower()
        self._scheme = _SAME.get(scheme, scheme)
        rest = match[3].strip("/")
        if not match[3].partition("/")[0] and self._scheme in _LOGINS:
            raise UserError(f"{url} names no bucket: expected {scheme}://bucket/folder")
        if scheme == "file" and not match[3].startswith(".") and ":" not in rest.partition("/")[0]:
            rest = f"/{rest}"  # also from file:/folder, as pathlib writes it
        self.url = f"{scheme}://{rest}"
        self._files = file_system(self._scheme, self.url)
        self._root = self._files._strip_protocol(self.url).rstrip("/")

    def names(self, prefix: str = "") -> list[str]:
        """Returns the names of all files in the folder and below that start with a prefix, sorted.

        The listing is never taken from a cache. It is empty if there is no such folder.
        """
        start = f"{self._root}/"
        folder = start + prefix.rpartition("/")[0]
        try:
            paths = self._retried(prefix, lambda: self._files.find(folder.rstrip("/")))
        except FileNotFoundError:
            return []
        names = (path[len(start) :] for path in paths if path.startswith(start))
        return sorted(
            name for name in names if name.startswith(prefix) and name[-1:] not in ("", "/")
        )

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        return self._retried(name, lambda: self._files.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file; one of the same name is replaced."""
        self._retried(name, lambda: self._files.pipe_file(self._path(name), data))

    def download(self, name: str, path: Path) -> None:
        """Copies a file to a local path, where it appears complete or not at all."""

        def fetch() -> None:
            with atomic_write(path) as unfinished:
                self._files.get_file(self._path(name), str(unfinished))

        self._retried(name, fetch)

    def upload(self, path: Path, name: str) -> None:
        """Copies a local file, of any size, into the folder; one of the same name is replaced."""
        path.stat()  # a missing local file is not a missing bucket
        options = {"chunksize": _PART} if self._scheme in _LOGINS else {}
        self._retried(name, lambda: self._files.put_file(str(path), self._path(name), **options))

    def create(self, name: str, data: bytes) -> bool:
        """Writes a file unless there is one of this name, and returns True if it was written.

        Of several callers one writes the file, if the server supports conditional requests (Amazon
        S3, Google Cloud Storage, local files); otherwise, callers at the same moment may all.
        """
        path, token = self._path(name), secrets.token_hex()

        def write() -> bool:
            # Servers that ignore the condition would replace the file.
            if not self._files.exists(path):
                with suppress(FileExistsError):
                    self._create(path, data, token)
                    return True
            # An earlier attempt may have written the file before its connection was lost; the
            # HTTP client repeats requests too.
            with suppress(FileNotFoundError):
                return self._scheme in _METADATA and token == self._files.getxattr(path, "token")
            return False

        return self._retried(name, write)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files; those that do not exist are skipped."""
        for name in names:
            with suppress(FileNotFoundError):
                self._retried(name, lambda name=name: self._files.rm_file(self._path(name)))

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

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _retried(self, name: str, operation: Callable[[], _Result]) -> _Result:
        """Returns the result of an operation on a file, repeated after transient failures."""
        url = f"{self.url}/{name}".rstrip("/")
        first_failure = None
        delay = FIRST_DELAY
        while True:
            try:
                return operation()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{url} does not exist, or its bucket") from error
            except Exception as error:
                if is_denied(error):
                    raise PermissionError(self._denied(url, error)) from error
                if not is_transient(error):
                    raise OSError(f"{url}: {reason(error)}") from error
                wait = delay * random.uniform(0.5, 1.0)
                now = time.monotonic()
                first_failure = first_failure or now
                if now + wait > first_failure + GIVE_UP_AFTER:
                    raise OSError(f"{url}: {reason(error)}; retries did not help") from error
            time.sleep(wait)
            delay = min(2 * delay, LONGEST_DELAY)

    def _denied(self, url: str, error: Exception) -> str:
        logins = _LOGINS.get(self._scheme)
        hint = f". Credentials are looked for in {logins}" if logins else ""
        return f"no access to {url}: {reason(error)}{hint}"
