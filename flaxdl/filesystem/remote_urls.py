"""URLs of remote files and folders."""

import re
from pathlib import Path

from flaxdl.errors import UserError

BUCKETS = ("gs", "s3")
"""Schemes whose URLs begin with the name of a bucket."""
_SAME = {"gcs": "gs", "s3a": "s3"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)  # C:/ is a drive of Windows


def is_url(path: str | Path) -> bool:
    """Returns True for `scheme://...`, also as a `Path`, which turns `gs://b/x` into `gs:/b/x`."""
    match = _URL.match(path.as_posix() if isinstance(path, Path) else path)
    return match is not None and (isinstance(path, Path) or match[2] == "/")


def split_url(url: str) -> tuple[str, str]:
    """Returns the scheme of a URL, without synonyms, and the URL without a trailing slash.

    Raises:
        UserError: if it is not a URL, or has no bucket.
    """
    match = _URL.match(url)
    if match is None:
        raise UserError(f"{url} is not a URL: expected scheme://bucket/folder, such as gs://b/x")
    scheme, place = match[1].lower(), match[3]
    rest = place.strip("/")
    if not place.partition("/")[0] and _SAME.get(scheme, scheme) in BUCKETS:
        raise UserError(f"{url} names no bucket: expected {scheme}://bucket/folder")
    if scheme == "file" and not place.startswith(".") and ":" not in rest.partition("/")[0]:
        rest = f"/{rest}"  # also from file:/folder, as pathlib writes it
    return _SAME.get(scheme, scheme), f"{scheme}://{rest}"
