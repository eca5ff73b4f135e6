"""File downloads with progress bar, resumption, checksum verification and a cache."""

import hashlib
from pathlib import Path

from flaxdl.errors import UserError
from flaxdl.filesystem.locks import locked
from flaxdl.filesystem.progress import progress_bar

TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
CHUNK_SIZE = 1 << 16  # bytes; a broken connection loses less than a chunk


def download(url: str, path: str | Path, sha256: str) -> Path:
    """Downloads a file unless it exists, and returns its path.

    A partial download is kept as `PATH.part` and resumed by the next call. If several processes
    need the file, one downloads it while the others wait. An existing file is only read, so its
    folder may be read-only.

    Args:
        url: address of the file.
        path: path to save the file to.
        sha256: SHA-256 of the file in hexadecimal, or the first digits of it.

    Raises:
        UserError: if the file cannot be downloaded or its SHA-256 differs; the message states the
            address, the reason, and the path for a manual download.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    manually = f"To download it manually, save the file as {path}"
    try:
        if _is_downloaded(path, url, sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock")):
            # Another process may have downloaded the file in the meantime.
            if _is_downloaded(path, url, sha256):
                return path
            found = _fetch(url, part)
            if not found.startswith(sha256):
                part.unlink()
                raise UserError(
                    f"the download of {url} was discarded: its SHA-256 is {found}, expected one "
                    f"that starts with {sha256}. {manually}"
                )
            part.replace(path)
    except OSError as error:  # includes the errors of requests and filelock
        received = part.stat().st_size if part.is_file() else 0
        resume = f"Run the same command again to resume after {received:,} bytes. "
        raise UserError(
            f"{url} could not be downloaded: {error or type(error).__name__}. "
            f"{resume if received else ''}{manually}"
        ) from error
    return path


def _is_downloaded(path: Path, url: str, sha256: str) -> bool:
    """Returns True if the file exists.

    Raises:
        UserError: if the file exists but its SHA-256 differs.
    """
    if not path.is_file():
        return False
    found = _digest(path).hexdigest()
    if not found.startswith(sha256):
        raise UserError(
            f"{path} is not the file at {url}: its SHA-256 is {found}, expected one that starts "
            f"with {sha256}. Delete it to download it again"
        )
    return True


def _fetch(url: str, part: Path) -> str:
    """Completes a partial download at `part`, and returns the SHA-256 of the whole file."""
    import requests

    start = part.stat().st_size if part.is_file() else 0
    # With compression, byte ranges would refer to the compressed data.
    headers = {"Accept-Encoding": "identity"}
    with requests.Session() as session:
        session.headers.update(headers)
        ranged = {"Range": f"bytes={start}-"} if start else {}
        response = session.get(url, headers=ranged, stream=True, timeout=TIMEOUT)
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            digest = _digest(part)  # no bytes are left: it is complete, or a different file
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return digest.hexdigest()
            response = session.get(url, stream=True, timeout=TIMEOUT)
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server ignored the range and sends the whole file
        digest = _digest(part) if start else hashlib.sha256()
        remaining = int(response.headers.get("Content-Length", 0))
        with progress_bar(url.rpartition("/")[2]) as progress:
            bar = progress.add_task("", completed=start, total=start + remaining or None)
            with part.open("ab" if start else "wb") as file:
                for chunk in response.iter_content(CHUNK_SIZE):
                    file.write(chunk)
                    digest.update(chunk)
                    progress.advance(bar, len(chunk))
    return digest.hexdigest()


def _digest(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
