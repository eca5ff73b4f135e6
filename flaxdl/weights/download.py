"""Files from the internet: shown while they come, resumed where they stopped, verified, cached."""

import hashlib
import os
from pathlib import Path

from flaxdl.errors import UserError
from flaxdl.filesystem.locks import locked
from flaxdl.filesystem.paths import local_path

TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
PIECE = 1 << 16  # bytes; less than one is lost when the connection is


def cache_folder() -> Path:
    """The folder of downloads: `$FLAXDL_CACHE`, or `flaxdl` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("FLAXDL_CACHE")
    if own:
        return local_path(own)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "flaxdl"


def download(url: str, path: str | Path, sha256: str) -> Path:
    """Fetches a file, unless it is there, and returns where it is.

    What has come is kept in `PATH.part`, so that the next call goes on from there. Of several
    processes one downloads while the others wait. A file that is there is only read, so its folder
    may be one that cannot be written.

    Args:
        url: where the file is.
        path: where it is put.
        sha256: the SHA-256 of the file in hexadecimal digits, or the first ones of it.

    Raises:
        UserError: if the file cannot be had or has another SHA-256, with the address, the reason
            and the place to put the file by hand.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    by_hand = f"To do it by hand, put the file at {path}"
    try:
        if _is_there(path, url, sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock")):
            if _is_there(path, url, sha256):  # another process has downloaded it meanwhile
                return path
            found = _fetch(url, part)
            if not found.startswith(sha256):
                part.unlink()
                raise UserError(
                    f"what came from {url} was thrown away: its SHA-256 is {found}, and should "
                    f"begin with {sha256}. {by_hand}"
                )
            part.replace(path)
    except OSError as error:  # what requests and filelock raise are OSErrors too
        received = part.stat().st_size if part.is_file() else 0
        again = f"The same command goes on behind the {received:,} bytes that came. "
        raise UserError(
            f"{url} could not be downloaded: {error or type(error).__name__}. "
            f"{again if received else ''}{by_hand}"
        ) from error
    return path


def _is_there(path: Path, url: str, sha256: str) -> bool:
    """Returns whether the file is there; a UserError if it is another one."""
    if not path.is_file():
        return False
    found = _digest(path).hexdigest()
    if not found.startswith(sha256):
        raise UserError(
            f"{path} is not the file of {url}: its SHA-256 is {found}, and should "
            f"begin with {sha256}. Delete it to have it downloaded again"
        )
    return True


def _fetch(url: str, part: Path) -> str:
    """Completes the file at `part`, and returns its SHA-256."""
    import requests
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    start = part.stat().st_size if part.is_file() else 0
    # Compressed on the way, a file could not be resumed by its own bytes.
    headers = {"Accept-Encoding": "identity"}
    with requests.Session() as session:
        session.headers.update(headers)
        ranged = {"Range": f"bytes={start}-"} if start else {}
        response = session.get(url, headers=ranged, stream=True, timeout=TIMEOUT)
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            digest = _digest(part)  # there is nothing behind: it is complete, or another file
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return digest.hexdigest()
            response = session.get(url, stream=True, timeout=TIMEOUT)
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # all of it comes, whatever was asked for
        digest = _digest(part) if start else hashlib.sha256()
        remaining = int(response.headers.get("Content-Length", 0))
        columns = (
            TextColumn(url.rpartition("/")[2]),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            bar = progress.add_task("", completed=start, total=start + remaining or None)
            with part.open("ab" if start else "wb") as file:
                for piece in response.iter_content(PIECE):
                    file.write(piece)
                    digest.update(piece)
                    progress.advance(bar, len(piece))
    return digest.hexdigest()


def _digest(path: Path) -> "hashlib._Hash":
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")
