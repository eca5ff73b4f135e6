"""Checkpoints of the whole training state, written by Orbax in the background."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

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
        self._serialize = ocp.tree.serialize_tree
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers=ocp.StandardCheckpointHandler(),  # which knows shapes without reading
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
            ValueError: if there is no such checkpoint, or it holds another state.
        """
        self.check(like, step)
        state: Any = self._manager.restore(step, args=self._arguments.StandardRestore(like))
        return state

    def check(self, like: TrainState, step: int) -> None:
        """Checks that the checkpoint of a step holds a state of this structure.

        Raises:
            ValueError: if there is none, or it does not, naming some of what differs.
        """
        if step not in self.steps():
            raise ValueError(
                f"{self._manager.directory} has no checkpoint of step {step}, only {self.steps()}"
            )
        ours = _shapes(self._serialize(like, keep_empty_nodes=True))
        theirs = _shapes(self._manager.item_metadata(step))
        differing = sorted(key for key in ours | theirs if ours.get(key) != theirs.get(key))
        if differing:
            names = ", ".join(differing[:3])
            raise ValueError(
                f"the checkpoint of step {step} in {self._manager.directory} is that of another "
                f"model, optimizer or way of freezing: {len(differing)} of its arrays differ, "
                f"such as {names}"
            )

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        self._manager.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}
