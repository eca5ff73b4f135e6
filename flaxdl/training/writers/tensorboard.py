"""Writer of TensorBoard events."""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from flaxdl.training.writers.writer import Writer

_LOGGER = logging.getLogger(__name__)
_INSTALL = "to write them, run pip install 'flaxdl[tensorboard]'"


class TensorBoardWriter(Writer):
    """Writes each metric of a line as the scalar `SPLIT/METRIC`.

    Events are optional: if TensorBoard is not installed or events cannot be written, the run logs a
    warning and continues without them. They are written in the caller's thread, since the thread of
    TensorBoard's own writer dies silently on a full disk, and the run would wait for it forever.

    Args:
        directory: folder for the event files.
        step: step that the run starts from; TensorBoard hides events for later steps that an
            interrupted run wrote before.
    """

    def __init__(self, directory: Path, *, step: int):
        self._records: Any = None
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            _LOGGER.warning("no TensorBoard events (%s); %s", error, _INSTALL)
            return
        self._directory = directory
        self._events: Any = event_pb2
        self._summaries: Any = summary_pb2
        # TensorBoard finds its files by this name and reads them in chronological order. The file
        # is not buffered, since a buffer that could not be written would be written again on close.
        now = time.time_ns()
        path = directory / f"events.out.tfevents.{now // 10**9}.{now % 10**9:09}.{os.getpid()}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(path.open("xb", buffering=0))
            self._write(file_version="brain.Event:2")
            log = self._events.SessionLog
            self._write(step=step + 1, session_log=log(status=log.START))
        except OSError as error:
            self._give_up(error)

    def line(self, line: dict[str, Any]) -> None:
        """Writes a scalar for each metric."""
        if self._records is None:
            return
        value_of = self._summaries.Summary.Value
        values = [
            value_of(tag=f"{line['split']}/{name}", simple_value=value)
            for name, value in line.items()
            if name not in ("step", "split") and value is not None
        ]
        try:
            self._write(step=line["step"], summary=self._summaries.Summary(value=values))
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        if self._records is not None:
            try:
                self._records.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, **event: Any) -> None:
        record = self._events.Event(wall_time=time.time(), **event)
        self._records.write(record.SerializeToString())

    def _give_up(self, error: OSError) -> None:
        if self._records is not None:
            with contextlib.suppress(OSError):
                self._records.close()
            self._records = None
        _LOGGER.warning(
            "TensorBoard events cannot be written to %s (%s); continuing without them",
            self._directory,
            error.strerror,
        )
