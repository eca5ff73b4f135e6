"""What cannot be read among thousands that can: said once for each, and an error when too many."""

import logging
import threading
from typing import Any

from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)


class Unreadable:
    """Counts files or lines that cannot be read; it may be shared between threads.

    A copy that was pickled into a worker process only collects, for the original to count.

    Args:
        limit: how many there may be.
        kind: what they are, as in `images`.
    """

    def __init__(self, limit: int, kind: str):
        self._limit = limit
        self._kind = kind
        self._reasons: dict[str, str] = {}  # by name
        self._lock = threading.Lock()
        self._is_copy = False

    def add(self, name: str, reason: str) -> None:
        """Logs what cannot be read, the first time that it is met.

        Raises:
            UserError: listing all of them, when there are more than the limit.
        """
        with self._lock:
            is_new = name not in self._reasons
            self._reasons[name] = reason
            reasons = list(self._reasons.values())
        if is_new and not self._is_copy:
            _LOGGER.warning("%s; it does not count", reason)
        if len(reasons) > self._limit:
            raise UserError(
                f"{len(reasons)} {self._kind} cannot be read, more than max_unreadable = "
                f"{self._limit}:\n  " + "\n  ".join(reasons)
            )

    def taken(self) -> dict[str, str]:
        """Takes out what a copy has collected since the last call, as name -> reason."""
        with self._lock:
            reasons, self._reasons = self._reasons, {}
        return reasons

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_kind": self._kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_limit"], state["_kind"])
        self._is_copy = True
