"""Counting of skipped examples (unreadable files or lines), up to a limit."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


class SkippedExamples:
    """Thread-safe counter of files or lines that cannot be read.

    A copy pickled into a worker process does not log; it collects the reasons for the original.

    Args:
        limit: maximum number of skipped examples; more raise an error.
        kind: plural noun for messages, such as `images`.
    """

    def __init__(self, limit: int, kind: str):
        self.kind = kind
        self._limit = limit
        self._reasons: dict[str, str] = {}  # by name
        self._lock = threading.Lock()
        self._is_copy = False

    def add(self, name: str, reason: str) -> None:
        """Counts an unreadable file or line, and logs the reason the first time.

        Args:
            name: path of the file, with the line number if only one line is unreadable.
            reason: description of the error, including the name.

        Raises:
            UserError: if more than `limit` names are unreadable; the message lists all reasons.
        """
        with self._lock:
            is_new = name not in self._reasons
            self._reasons[name] = reason
            reasons = list(self._reasons.values())
        if is_new and not self._is_copy:
            _LOGGER.warning("%s; skipping it", reason)
        if len(reasons) > self._limit:
            raise UserError(
                f"{len(reasons)} {self.kind} cannot be read, more than max_unreadable = "
                f"{self._limit}:\n  " + "\n  ".join(reasons)
            )

    def pop_reasons(self) -> dict[str, str]:
        """Returns the reasons collected since the last call, by name, and clears them."""
        with self._lock:
            reasons, self._reasons = self._reasons, {}
        return reasons

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self._limit, "kind": self.kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)
        self._is_copy = True


def first_readable(
    index: int,
    count: int,
    read: Callable[[int], np.ndarray],
    *,
    name_of: Callable[[int], str],
    skipped: SkippedExamples,
) -> tuple[np.ndarray, bool]:
    """Reads an example or, if it is unreadable, the next readable one.

    Args:
        index: number of the example.
        count: number of examples; after the last one, the first one follows.
        read: callable that reads an example, or raises a UserError.
        name_of: callable that returns the name of an example for messages.
        skipped: counter of unreadable examples.

    Returns:
        The array, and True if it is that of the example itself.

    Raises:
        UserError: if too many examples are unreadable.
    """
    for number in range(index, index + count):
        place = number % count
        try:
            return read(place), number == index
        except UserError as error:
            skipped.add(name_of(place), str(error))
    raise UserError(
        f"none of the {count} {skipped.kind} can be read; the first one tried was {name_of(index)}"
    )
