"""Time spent on each part of a run, measured in process 0 and summed over restarts.

Only the host's time is measured. Since devices compute while the host prepares the next step, they
are not necessarily idle while the host is `waiting for data`.
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
    """Time spent on each part of a run, in seconds; nested time counts only for the inner part."""

    def __init__(self):
        self._earlier: dict[str, float] = {}
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self._nested = [0.0]  # seconds measured in nested parts, for each part being measured

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part, in the order of `NAMES`; unmeasured time counts as `setting up`."""
        rest = time.perf_counter() - self._start - sum(self._seconds.values())
        seconds = self._seconds | {"setting up": rest}
        return {name: self._earlier.get(name, 0.0) + seconds[name] for name in NAMES}

    def resume_from(self, seconds: dict[str, float]) -> None:
        """Adds the seconds measured before the run was resumed."""
        self._earlier = seconds

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Context manager that measures its time as the part `name`, one of `NAMES`.

        It is cheap, since it is entered in every step.
        """
        start = time.perf_counter()
        self._nested.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            self._seconds[name] += whole - self._nested.pop()
            self._nested[-1] += whole

    @contextlib.contextmanager
    def saved_to(self, path: Path | None, devices: str) -> Iterator[None]:
        """Context manager that saves the times on exit, even after an error.

        Args:
            path: file to write, see `load_times`; None to save nothing.
            devices: description of the devices.
        """
        try:
            yield
        finally:
            if path is not None:
                _save(self.seconds, devices, path)

    def measure_compilation(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function so that its first call is measured as `compiling`."""
        is_first = True

        def call(*arguments: Any) -> Any:
            nonlocal is_first
            if not is_first:
                return function(*arguments)
            is_first = False
            with self.measure("compiling"):
                return function(*arguments)

        return call


def load_times(path: Path) -> tuple[dict[str, float], str | None]:
    """Returns saved seconds by part and a description of the devices; ({}, None) if unreadable."""
    if not path.is_file():  # reading a pipe would block
        return {}, None
    try:
        record = json.loads(path.read_text())
        seconds = {name: float(record["seconds"][name]) for name in NAMES}
        return seconds, str(record["devices"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}, None


def _save(seconds: dict[str, float], devices: str, path: Path) -> None:
    text = json.dumps({"devices": devices, "seconds": seconds}, indent=2)
    with contextlib.suppress(OSError), atomic_write(path) as unfinished:  # not essential
        unfinished.write_text(text + "\n")
