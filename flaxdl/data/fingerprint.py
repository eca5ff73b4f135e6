"""Fingerprints of data, by which a resumed run notices that they have changed.

A fingerprint is a text such as `1:5b0c1f6d0e4f2a91`: the version of this algorithm, and 64 bits.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_VERSION = 1  # to be raised with any change of what is hashed, so that old runs can be resumed
_MOST_BYTES = 2**30  # of an array; of a larger one as many rows are sampled
_BLOCK_BYTES = 2**26
_STABLE = (str, bytes, int, float, np.number, type(None))  # `str` of these is the same everywhere


def of_arrays(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The fingerprint of arrays by name, or None if they hold objects without a stable text.

    It covers dtypes, shapes and all values; of an array above 1 GiB, evenly spaced rows. Takes
    about 0.8 s a gigabyte where the processor has instructions for SHA-256.
    """
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} ".encode())
        if not _add(digest, np.asanyarray(array)):
            return None
    return _text(digest)


def of_texts(texts: Iterable[str]) -> str:
    """The fingerprint of texts, such as the names of files, in their order."""
    # Not every name of a file is Unicode.
    return _text(hashlib.sha256("\n".join(texts).encode("utf-8", "surrogateescape")))


def may_be_equal(one: str | None, other: str | None) -> bool:
    """Returns True if two fingerprints are equal, or cannot be compared."""
    if one is None or other is None or one.partition(":")[0] != other.partition(":")[0]:
        return True
    return one == other


def _text(digest: Any) -> str:
    return f"{_VERSION}:{digest.hexdigest()[:16]}"


def _add(digest: Any, array: np.ndarray) -> bool:
    """Adds dtype, shape and values; returns False if an object among them has no stable text."""
    digest.update(f"{array.dtype} {array.shape}\n".encode())
    if array.dtype.kind == "O" or array.dtype.kind == "T":  # T: texts of variable length
        return all(_add_object(digest, item) for item in array.flat)
    if array.dtype.hasobject:
        return False
    if array.nbytes:
        rows = array.reshape(1) if array.ndim == 0 else array
        rows = rows[:: math.ceil(array.nbytes / _MOST_BYTES)]
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
