"""Arrays of Python strings.

NumPy string arrays pad each string to the longest one and may take a large amount of memory, so
they are converted to object arrays.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxdl.errors import UserError

_MAX_PADDED = 2**28  # characters


def as_texts(values: Any, name: str) -> np.ndarray:
    """Returns texts as an array of `str` objects, [N].

    Args:
        values: strings, or bytes in UTF-8, one per example.
        name: name of the texts in error messages, such as `train_inputs`.

    Raises:
        UserError: if a value is not text, such as None, NaN or a list; the message contains its
            number.
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
    """Yields slices of at most `size` elements that together cover 0 to `count` - 1."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def add_to_digest(digest: Any, name: str, texts: np.ndarray) -> None:
    """Updates a hash with an array of `str` objects [N] and its name.

    If the equivalent NumPy string array takes at most 1 GiB, the result is the same as for that
    array (which is not created), so that hashes stored by earlier versions still match.
    """
    longest = max(map(len, texts), default=0) or 1
    width = longest if len(texts) * longest <= _MAX_PADDED else 0
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
