"""Texts in memory: arrays of Python strings, each as long as it is.

NumPy's own strings have a fixed width, that of the longest one, and so may take any amount of
memory; they are turned into Python's.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxdl.errors import UserError

_MOST_PADDED = 2**28  # characters


def as_texts(values: Any, name: str) -> np.ndarray:
    """Returns texts as an array of `str` objects, [N].

    Args:
        values: texts, or bytes in UTF-8, one for each example.
        name: what they are called in messages, as in `train_inputs`.

    Raises:
        UserError: if one of them is no text, such as None, NaN or a list, with its number.
    """
    if isinstance(values, np.ndarray) and (values.ndim != 1 or values.dtype.kind not in "OUST"):
        remedy = f"; use {name}[:, 0]" if values.shape[1:] == (1,) else ""
        raise UserError(
            f"{name} must be texts [N], got {values.dtype} {list(values.shape)}{remedy}"
        )
    if isinstance(values, np.ndarray) and values.dtype == object and _are_plain(values):
        return values
    texts = np.empty(len(values), object)
    for number, value in enumerate(values):
        texts[number] = _as_text(value, name, number)
    return texts


def chunks(count: int, size: int = 1024) -> Iterator[slice]:
    """Yields slices that cover 0 to `count` - 1, of at most `size` texts each."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def add_to_digest(digest: Any, name: str, texts: np.ndarray) -> None:
    """Adds a named array of `str` objects [N] to a hash.

    Up to 1 GiB it is that of NumPy's array of fixed width, by which earlier versions knew the data
    of a run; the array is not made.
    """
    longest = max(map(len, texts), default=0) or 1
    width = longest if len(texts) * longest <= _MOST_PADDED else 0
    digest.update(f"{name} <U{longest} {texts.shape}".encode())
    for text in texts:
        padded = text.ljust(width, "\0") if width else f"{len(text)} {text}"
        digest.update(padded.encode("utf-32-le", "surrogatepass"))


def _are_plain(values: np.ndarray) -> bool:
    return all(type(value) is str for value in values)


def _as_text(value: Any, name: str, number: int) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            pass
    raise UserError(
        f"{name} must be texts, got {repr(value)[:60]} of type {type(value).__name__} "
        f"in row {number}"
    )
