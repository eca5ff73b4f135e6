"""Watchdog for iterators that may be slow or hang."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

_LOGGER = logging.getLogger(__name__)


def with_watchdog(
    batches: Iterator[Any],
    *,
    warn_every: float,
    on_hang: Callable[[], None] = lambda: None,
    hang_after: float = float("inf"),
) -> Generator[Any]:
    """Yields the items of an iterator while a thread monitors how long each takes.

    Args:
        batches: iterator to monitor.
        warn_every: waiting time between warnings, in seconds.
        on_hang: callable without arguments, called when the iterator seems to hang.
        hang_after: waiting time after which the iterator seems to hang, in seconds.
    """
    watchdog = _Watchdog(warn_every, on_hang, hang_after)
    watchdog.start()
    try:
        while True:
            watchdog.since = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                watchdog.since = None
            yield batch
    finally:
        watchdog.ended.set()
        watchdog.join()


class _Watchdog(threading.Thread):
    """Thread that logs warnings while a batch is overdue."""

    def __init__(self, warn_every: float, on_hang: Callable[[], None], hang_after: float):
        super().__init__(name="watchdog", daemon=True)
        self.since: float | None = None
        self.ended = threading.Event()
        self._warn_every = warn_every
        self._on_hang = on_hang
        self._hang_after = hang_after

    def run(self) -> None:
        """Monitors the iterator until `ended` is set."""
        warned_since, warnings = None, 0
        while not self.ended.wait(min(self._warn_every, self._hang_after) / 10):
            since = self.since
            if since is None:
                continue
            if since != warned_since:
                warned_since, warnings = since, 0
            waited = time.monotonic() - since
            if waited > self._hang_after:
                _LOGGER.warning(
                    "no batch for %.0f s: the data worker seems to hang; restarting it", waited
                )
                self._on_hang()
                self.since = None
            elif waited > self._warn_every * (warnings + 1):
                warnings += 1
                _LOGGER.warning(
                    "still waiting for a batch after %.0f s (slow storage or a hung worker?)",
                    waited,
                )
