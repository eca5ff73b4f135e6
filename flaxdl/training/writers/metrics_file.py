"""The file `metrics.jsonl`: metrics of a run, also needed to resume it."""

import contextlib
import errno
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flaxdl.errors import SaveError, UserError
from flaxdl.filesystem.atomic import atomic_write, sync
from flaxdl.filesystem.outputs import not_written

_LOGGER = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


class MetricsFile:
    """The lines of `metrics.jsonl`, one JSON object per line, ordered by step.

    A line is `{"step": 120, "split": "validation", "loss": 0.31, "accuracy": 0.92}`. Non-finite
    numbers are written as null, since JSON cannot represent them. Lines are appended atomically; a
    line that cannot be written is written together with the next one.

    Args:
        path: path of the file; existing lines are read.
        writes: True to write to the file. With several processes, only the first one writes, but
            all keep the lines in memory.

    Raises:
        UserError: if the path is not a readable file, or if a line is invalid.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self._path = path
        self._writes = writes
        self._written = 0  # lines
        self.appended = 0
        """Number of lines appended through this object."""
        self.lines: list[dict[str, Any]] = []
        if os.path.lexists(path):
            # A last line without a newline was cut off by a crash; it is measured again.
            whole, _, _ = _read(path).rpartition(b"\n")
            self.lines = [
                _parsed(line, f"{path}, line {number}")
                for number, line in enumerate(whole.splitlines(), 1)
            ]
            self._written = len(self.lines)

    @property
    def last_written(self) -> int | None:
        """Step of the newest line in the file; None if it is empty."""
        return self.lines[self._written - 1]["step"] if self._written else None

    def sync(self) -> int | None:
        """Flushes the file to disk and returns `last_written`."""
        if self._writes and self._written:
            with contextlib.suppress(OSError):  # saving the checkpoint matters more
                sync(self._path)
        return self.last_written

    def missing(self, last_line: int | None) -> str | None:
        """Describes missing lines; returns None if none are missing.

        Lines are missing if the file was deleted or replaced by an older copy.

        Args:
            last_line: step of the newest line that was ever written; None if there was none.
        """
        if last_line is None or any(line["step"] == last_line for line in self.lines):
            return None
        newest = max((line["step"] for line in self.lines), default=0)
        return (
            f"{self._path} ends at step {newest}, but lines up to step {last_line} were written; "
            "without the missing lines the best checkpoint is unknown"
        )

    def truncate(self, step: int, *, keep_test: bool = True) -> None:
        """Drops the lines after `step`; a resumed run writes them again.

        Args:
            step: last step to keep.
            keep_test: True to keep the line of the test split; it must be dropped if a finished run
                is extended.

        Raises:
            SaveError: if the file cannot be written.
        """
        self.lines = [
            line
            for line in self.lines
            if line["step"] <= step and (keep_test or line["split"] != "test")
        ]
        self._written = len(self.lines)
        if not self._writes:
            return
        try:
            with atomic_write(self._path) as unfinished:
                unfinished.write_bytes(_text(self.lines))
        except OSError as error:
            raise SaveError(not_written(self._path, error)) from error

    def has(self, step: int, split: str) -> bool:
        """Returns whether there is a line for this step and split."""
        return any(line["step"] == step and line["split"] == split for line in reversed(self.lines))

    def of_split(self, split: str, *, until: int | None = None) -> list[dict[str, Any]]:
        """Returns the lines of a split, oldest first, up to step `until` if given."""
        return [
            line
            for line in self.lines
            if line["split"] == split and (until is None or line["step"] <= until)
        ]

    def append(self, step: int, split: str, values: Mapping[str, float]) -> dict[str, Any]:
        """Appends a line and returns it; logs a warning if the file cannot be written now."""
        line = {"step": step, "split": split} | {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
        self.lines.append(line)
        self.appended += 1
        try:
            self._write()
        except OSError as error:
            _LOGGER.warning("%s; will retry with the next line", not_written(self._path, error))
        return line

    def finish(self) -> None:
        """Writes the lines that are not in the file yet.

        Raises:
            SaveError: if the file still cannot be written.
        """
        try:
            self._write()
        except OSError as error:
            raise SaveError(not_written(self._path, error)) from error

    def _write(self) -> None:
        """Appends the missing lines with a single system call, so that a signal cannot split it."""
        missing = self.lines[self._written :] if self._path.exists() else self.lines
        if not (self._writes and missing):
            return
        text = _text(missing)
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(file).st_size
            if os.write(file, text) < len(text):
                os.ftruncate(file, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
        self._written = len(self.lines)


def _text(lines: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _read(path: Path) -> bytes:
    """Returns the content of a file; rejects pipes and devices, since reading may never end."""
    if not path.is_file():
        raise UserError(f"{path} must be a regular file with lines of metrics")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _parsed(text: bytes, place: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if (
        not isinstance(line, dict)
        or type(line.get("step")) is not int
        or line.get("split") not in SPLITS
        or "loss" not in line
        or not all(value is None or type(value) in (int, float) for value in _values(line))
    ):
        raise UserError(
            f'{place}: expected a line such as {{"step": 120, "split": "train", "loss": 0.3}}, '
            f"got {text[:80]!r}"
        )
    return line


def _values(line: dict[str, Any]) -> Iterable[Any]:
    return (value for name, value in line.items() if name not in ("step", "split"))
