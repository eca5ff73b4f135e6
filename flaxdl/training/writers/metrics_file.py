"""`metrics.jsonl`, the file in which a run writes its metrics and from which it resumes."""

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
    """`metrics.jsonl`: one JSON object a line, in the order of steps.

    A line is `{"step": 120, "split": "validation", "loss": 0.31, "accuracy": 0.92}`. Numbers that
    are not finite are written as null, since JSON has no word for them. A line is in the file whole
    or not at all, and what cannot be written now is written with the next.

    Args:
        path: the file; what it holds already is read.
        writes: whether to write it; of several processes one does, and all keep the lines.

    Raises:
        UserError: if the path is not a readable file, or naming the line that is none of metrics.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self._path = path
        self._writes = writes
        self._written = 0  # lines
        self.appended = 0
        """Lines that were appended through this object."""
        self.lines: list[dict[str, Any]] = []
        if os.path.lexists(path):
            # A line that the end of a machine left half-written is measured again.
            whole, _, _ = _read(path).rpartition(b"\n")
            self.lines = [
                _parsed(line, f"{path}, line {number}")
                for number, line in enumerate(whole.splitlines(), 1)
            ]
            self._written = len(self.lines)

    @property
    def last_written(self) -> int | None:
        """The step of the newest line in the file; None without any."""
        return self.lines[self._written - 1]["step"] if self._written else None

    def sync(self) -> int | None:
        """Waits until what was written is on disk; returns `last_written`."""
        if self._writes and self._written:
            with contextlib.suppress(OSError):  # a checkpoint is worth more than its last line
                sync(self._path)
        return self.last_written

    def missing(self, last_line: int | None) -> str | None:
        """Describes how the file falls short of a line that it once had; None if it does not.

        That happens where the file was deleted, or replaced by an older copy.

        Args:
            last_line: the step of the line, None without any.
        """
        if last_line is None or any(line["step"] == last_line for line in self.lines):
            return None
        newest = max((line["step"] for line in self.lines), default=0)
        return (
            f"{self._path} ends at step {newest}, but lines up to step {last_line} were written: "
            "some are lost, and with them which checkpoint is the best"
        )

    def rewind(self, step: int, *, keep_test: bool = True) -> None:
        """Drops the lines of later steps, which a resumed run is about to measure again.

        A run that was finished and now goes on for longer drops its test line as well.

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
        """Whether the line of this step and split is already written."""
        return any(line["step"] == step and line["split"] == split for line in reversed(self.lines))

    def of_split(self, split: str, *, until: int | None = None) -> list[dict[str, Any]]:
        """The lines of one split, oldest first, up to a step if one is given."""
        return [
            line
            for line in self.lines
            if line["split"] == split and (until is None or line["step"] <= until)
        ]

    def append(self, step: int, split: str, values: Mapping[str, float]) -> dict[str, Any]:
        """Writes one line and returns it; a failure is only warned of, see `finish`."""
        line = {"step": step, "split": split} | {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
        self.lines.append(line)
        self.appended += 1
        try:
            self._write()
        except OSError as error:
            _LOGGER.warning(
                "%s; its lines are kept until it can be", not_written(self._path, error)
            )
        return line

    def finish(self) -> None:
        """Writes what is not written yet.

        Raises:
            SaveError: if it still cannot be written.
        """
        try:
            self._write()
        except OSError as error:
            raise SaveError(not_written(self._path, error)) from error

    def _write(self) -> None:
        """Appends what is not written yet by a single call, which a signal cannot divide."""
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
    """The content of a file, but not of a pipe or a device, which may never end."""
    if not path.is_file():
        raise UserError(f"{path} must be a file with lines of metrics, but it is none")
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
            f'{place}: a line of metrics is like {{"step": 120, "split": "train", "loss": 0.3}}, '
            f"got {text[:80]!r}"
        )
    return line


def _values(line: dict[str, Any]) -> Iterable[Any]:
    return (value for name, value in line.items() if name not in ("step", "split"))
