"""Base class of metrics backends."""

from typing import Any


class Writer:
    """Somewhere metrics go besides `metrics.jsonl`: the console, TensorBoard, a report.

    A subclass overrides what it needs; by default nothing happens. Of several processes only the
    first one has writers.
    """

    def progress(self, step: int) -> None:
        """A step is about to start; called often, so cheap."""

    def line(self, line: dict[str, Any]) -> None:
        """A line of metrics was written, such as `{"step": 120, "split": "train", "loss": 0.3}`."""

    def finish(self, run: Any) -> None:
        """The run has ended; `run` holds its best checkpoint (`flaxdl.RestoredRun`).

        It is not called for a run that was interrupted or has diverged. Only the first process
        calls it, so with several processes nothing may be computed with `run.state`, whose arrays
        all of them hold.
        """

    def close(self) -> None:
        """No more calls will come, however the run has ended."""
