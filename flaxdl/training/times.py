"""What the time of a run is spent on, as its first process sees it, over all of its starts.

Devices work while the host prepares what comes next, so that only what the host waits for counts:
`waiting for data` is time in which the devices may have had nothing to do.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flaxdl.filesystem.atomic import atomic_write

NAMES: tuple[str, ...] = (
    "setting up",
    "compiling",
    "training",
    "waiting for data",
    "evaluating",
    "saving",
)


class Times:
    """Seconds by what they were spent on; of parts within parts, each second counts once."""

    def __init__(self):
        self._earlier: dict[str, float] = {}
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self._within = [0.0]  # seconds measured within each part that is being measured

    @property
    def seconds(self) -> dict[str, float]:
        """All of it, in the order of `NAMES`; what nothing else was measured as is setting up."""
        rest = time.perf_counter() - self._start - sum(self._seconds.values())
        seconds = self._seconds | {"setting up": rest}
        return {name: self._earlier.get(name, 0.0) + seconds[name] for name in NAMES}

    def go_on(self, earlier: dict[str, float]) -> None:
        """Adds what earlier starts of the run have spent."""
        self._earlier = earlier

    @contextlib.contextmanager
    def spent(self, name: str) -> Iterator[None]:
        """Counts what happens within as one of `NAMES`; called often, so cheap."""
        start = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            self._seconds[name] += whole - self._within.pop()
            self._within[-1] += whole

    @contextlib.contextmanager
    def kept(self, path: Path | None, devices: str) -> Iterator[None]:
        """Writes at the end, however that comes, what `load_times` reads; None writes nothing."""
        try:
            yield
        finally:
            if path is not None:
                _save(self.seconds, devices, path)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose first call counts as `compiling`."""
        is_first = True

        def call(*arguments: Any) -> Any:
            nonlocal is_first
            if not is_first:
                return function(*arguments)
            is_first = False
            with self.spent("compiling"):
                return function(*arguments)

        return call


def load_times(path: Path) -> tuple[dict[str, float], str | None]:
    """Seconds by what they were spent on, and on which devices; nothing where nothing is known."""
    if not path.is_file():  # a pipe would be waited for
        return {}, None
    try:
        record = json.loads(path.read_text())
        seconds = {name: float(record["seconds"][name]) for name in NAMES}
        return seconds, str(record["devices"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}, None


def _save(seconds: dict[str, float], devices: str, path: Path) -> None:
    text = json.dumps({"devices": devices, "seconds": seconds}, indent=2)
    with contextlib.suppress(OSError), atomic_write(path) as unfinished:  # the run can do without
        unfinished.write_text(text + "\n")
