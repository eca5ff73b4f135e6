"""Checkpoints of the whole training state, written by Orbax in the background."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flaxdl.training.state import TrainState


class Checkpoints:
    """The checkpoints of a run: the newest few, and the best one.

    Args:
        directory: where they lie, one folder a step.
        keep: how many of the newest are kept.
        best_step: says which step is the best so far; its checkpoint is kept as well.
    """

    def __init__(
        self, directory: Path, *, keep: int = 2, best_step: Callable[[], int | None] = lambda: None
    ):
        import orbax.checkpoint as ocp

        self._keep = keep
        self._best_step = best_step
        self._arguments = ocp.args
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self, enable_async_checkpointing=True
            ),
        )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax asks this after every save."""
        newest = {checkpoint.step for checkpoint in checkpoints[-self._keep :]}
        return [checkpoint.step in newest | {self._best_step()} for checkpoint in checkpoints]

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Copies the state off the devices and goes on writing it in the background."""
        step = int(state.step)
        if step not in self.steps():
            self._manager.save(step, args=self._arguments.StandardSave(state))

    def restore(self, like: TrainState, step: int) -> TrainState:
        """The state of a step, laid over the devices as the shapes in `like` say.

        Raises:
            ValueError: if there is no such checkpoint, or it holds another model's parameters.
        """
        if step not in self.steps():
            raise ValueError(
                f"{self._manager.directory} has no checkpoint of step {step}, only {self.steps()}"
            )
        state: Any = self._manager.restore(step, args=self._arguments.StandardRestore(like))
        return state

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()
