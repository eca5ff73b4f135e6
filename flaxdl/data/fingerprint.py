"""Data fingerprints, used to detect changes to the data when a run is resumed.

A fingerprint is text such as `1:5b0c1f6d0e4f2a91`: the version of the algorithm, and 64 bits of a
SHA-256 hash in hexadecimal.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_VERSION = 1  # increase it if the hashed content changes, so that old runs can be resumed
_MAX_BYTES = 2**30  # rows of arrays above this size are sampled
_BLOCK_BYTES = 2**26
_STABLE = (str, bytes, int, float, np.number, type(None))  # `str` is the same on all platforms


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Returns the fingerprint of named arrays, or None if they contain objects without stable text.

    The fingerprint covers names, dtypes, shapes and values; of an array above 1 GiB, only evenly
    spaced rows. Hashing takes about 0.8 s per gigabyte on CPUs with SHA-256 instructions.
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} ".encode())
        if not _add(digest, np.asanyarray(array)):
            return None
    return _text(digest)


def of_texts(texts: Iterable[str]) -> str:
    """Returns the fingerprint of a sequence of texts, such as file names."""
    # File names may have bytes that are not valid UTF-8.
    return _text(hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")))


def may_be_equal(one: str | None, other: str | None) -> bool:
    """Returns True if two fingerprints are equal or cannot be compared.

    They cannot be compared if one is None or if their algorithm versions differ.
    """
    if one is None or other is None or one.partition(":")[0] != other.partition(":")[0]:
        return True
    return one == other


def _text(digest: Any) -> str:
    return f"{_VERSION}:{digest.hexdigest()[:16]}"


def _add(digest: Any, array: np.ndarray) -> bool:
    """Hashes an array; returns False if it contains objects without stable text."""
    digest.update(f"{array.dtype} {array.shape}\n".encode())
    if array.dtype.kind == "O" or array.dtype.kind == "T":  # T: texts of variable length
        return all(_add_object(digest, item) for item in array.flat)
    if array.dtype.hasobject:
        return False
    if array.nbytes:
        rows = array.reshape(1) if array.ndim == 0 else array
        rows = rows[:: math.ceil(array.nbytes / _MAX_BYTES)]
        count = max(_BLOCK_BYTES // (rows[:1].nbytes or 1), 1)
        for start in range(0, len(rows), count):
            block = np.ascontiguousarray(rows[start : start + count])
            digest.update(block.reshape(-1).view(np.uint8))
    return True


def _add_object(digest: Any, item: Any) -> bool:
    if isinstance(item, np.ndarray):
        return _add(digest, item)
    if not isinstance(item, _STABLE):
        return False
    content = item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass")
    digest.update(b"%d " % len(content))
    digest.update(content)
    return True
