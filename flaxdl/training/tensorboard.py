"""Metrics as TensorBoard events."""

import logging
import time
from pathlib import Path
from typing import Any

_LOGGER = logging.getLogger(__name__)


class TensorBoardWriter:
    """Writes every number of a line as the scalar `SPLIT/METRIC`.

    Events are for looking at: where they cannot be written, a warning says so once, and the run
    goes on without. They are written in the caller's thread, since the thread of tensorboardX's own
    writer would die of a full disk in silence and keep the run waiting forever.

    Args:
        directory: where the event files go.
        step: what an earlier, interrupted part of the run wrote after this step is not shown.
    """

    def __init__(self, directory: Path, *, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._directory = directory
        self._protocol: Any = event_pb2
        self._scalar = scalar
        self._writer: EventsWriter | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(directory / "events"))
            log = self._protocol.SessionLog
            begin = self._protocol.Event(step=step + 1, session_log=log(status=log.START))
            self._writer.write_event(begin)
        except OSError as error:
            self._give_up(error)

    def progress(self, step: int) -> None:
        """Nothing is written between lines."""

    def line(self, line: dict[str, Any]) -> None:
        """One scalar for each metric."""
        if self._writer is None:
            return
        try:
            for name, value in line.items():
                if name not in ("step", "split") and value is not None:
                    summary = self._scalar(f"{line['split']}/{name}", value)
                    event = self._protocol.Event(
                        wall_time=time.time(), step=line["step"], summary=summary
                    )
                    self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        _LOGGER.warning(
            "TensorBoard events cannot be written to %s (%s); the run goes on without them",
            self._directory,
            error.strerror,
        )
