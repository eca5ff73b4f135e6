"""Waiting for what others prepare, and saying so when it takes too long."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

_LOGGER = logging.getLogger(__name__)


def watched(
    batches: Iterator[Any],
    *,
    every: float,
    hung: Callable[[], None] = lambda: None,
    after: float = float("inf"),
) -> Generator[Any]:
    """Yields what an iterator does, while a thread looks on how long each takes.

    Args:
        batches: what is waited for.
        every: after so many seconds of waiting, and again and again, a warning says so.
        hung: called when the next one counts as hung.
        after: so many seconds of waiting are needed for that.
    """
    watch = _Watch(every, hung, after)
    watch.start()
    try:
        while True:
            watch.since = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                watch.since = None
            yield batch
    finally:
        watch.ended.set()
        watch.join()


class _Watch(threading.Thread):
    """Looks on while somebody waits."""

    def __init__(self, every: float, hung: Callable[[], None], after: float):
        super().__init__(name="watch", daemon=True)
        self.since: float | None = None
        self.ended = threading.Event()
        self._every = every
        self._hung = hung
        self._after = after

    def run(self) -> None:
        """Until `ended`."""
        told_since, told = None, 0
        while not self.ended.wait(min(self._every, self._after) / 10):
            since = self.since
            if since is None:
                continue
            if since != told_since:
                told_since, told = since, 0
            waited = time.monotonic() - since
            if waited > self._after:
                _LOGGER.warning("no batch for %.0f s: what prepares it hangs, and is ended", waited)
                self._hung()
                self.since = None
            elif waited > self._every * (told + 1):
                told += 1
                _LOGGER.warning("no batch for %.0f s: a slow disk, or something that hangs", waited)
