"""Base class of metrics backends."""

from typing import Any


class Writer:
    """Base class of metrics backends, such as the console or TensorBoard.

    Subclasses override the methods that they need; by default, methods do nothing. With several
    processes, only the first one has writers.
    """

    def progress(self, step: int) -> None:
        """Called before each step with its number; should be cheap."""

    def line(self, line: dict[str, Any]) -> None:
        """Called with each line of metrics: `{"step": 120, "split": "train", "loss": 0.3}`."""

    def finish(self, run: Any) -> None:
        """Called at the end of a run with its best checkpoint (a `flaxdl.RestoredRun`).

        It is not called if the run was interrupted or has diverged. With several processes, only
        the first one calls it, so it must not compute with `run.state`: the arrays are sharded
        across all processes.
        """

    def close(self) -> None:
        """Called last, even if the run was interrupted or failed."""
