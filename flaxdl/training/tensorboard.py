"""Metrics as TensorBoard events."""

from pathlib import Path
from typing import Any


class TensorBoardWriter:
    """Writes every number of a line as the scalar `SPLIT/METRIC`.

    Args:
        directory: where the event files go.
        step: what an earlier, interrupted part of the run wrote after this step is not shown.
    """

    def __init__(self, directory: Path, *, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=10)

    def progress(self, step: int) -> None:
        """Nothing is written between lines."""

    def line(self, line: dict[str, Any]) -> None:
        """One scalar for each metric."""
        for name, value in line.items():
            if name not in ("step", "split") and value is not None:
                self._writer.add_scalar(f"{line['split']}/{name}", value, line["step"])

    def close(self) -> None:
        """Flushes the events to disk."""
        self._writer.close()
