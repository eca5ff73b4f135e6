"""A trained network as its run left it: the best checkpoint, and what it takes to use it."""

from flaxdl.errors import UserError
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from flaxdl.config import Config
from flaxdl.data import Splits, Transform, facts
from flaxdl.runs.setup import (
    Examples,
    load_splits,
    make_steps,
    split_batches,
    state_shapes,
    with_sizes_of_data,
)
from flaxdl.training.checkpoints.folder import CorruptCheckpoint
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.metrics import MetricsFile
from flaxdl.training.distributed.sharding import make_mesh
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.runs.workdir import Workdir
from flaxdl.backend.xla_flags import warn_if_cpu_is_wrong

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A run's best checkpoint, and what it takes to use it."""

    config: Config
    """The run, with the sizes of its model that its data decided."""
    transform: Transform
    """As it was fitted to the training split."""
    classes: tuple[str, ...] | None
    """What the labels are called, where they are classes."""
    examples: Examples
    """A batch of one example, as shapes."""
    steps: Steps
    state: TrainState

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes, in float32."""
        return {"params": self.state.params, **self.state.model_state}


def outline(workdir: str | Path, config: Config | None = None) -> Trained:
    """A run as `restore` gives it, but with shapes for its state; no checkpoint is read.

    Args:
        workdir: the run's folder.
        config: the run's config, where config.json cannot bring it back.

    Raises:
        UserError: if there is no run, or what is recorded of its data does not fit its config.
    """
    folder = Workdir(workdir)
    config = config or folder.config()
    data = folder.data()
    transform = config.transform.restore(folder.path)
    examples = {
        name: jax.ShapeDtypeStruct((1, *array["shape"]), array["dtype"])
        for name, array in data["example"].items()
    }
    epoch = data["steps_per_epoch"]
    classes = None if data["classes"] is None else tuple(data["classes"])
    config = with_sizes_of_data(config, classes, transform)
    steps = make_steps(config, transform, total_steps=1, steps_per_epoch=epoch)
    warn_if_cpu_is_wrong()
    try:
        shapes = state_shapes(steps, examples, make_mesh())
        outputs = jax.eval_shape(steps.predict, shapes, examples)
        config.task.check(outputs, None if classes is None else len(classes))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the data that config.json in {folder.path} describes do not fit its config: {error}"
        ) from error
    return Trained(config, transform, classes, examples, steps, shapes)


def restore(workdir: str | Path, config: Config | None = None) -> Trained:
    """Reads the best checkpoint of a finished or running run.

    Args:
        workdir: the run's folder.
        config: the run's config, where config.json cannot bring it back.

    Raises:
        UserError: if there is no run or no sound checkpoint.
    """
    folder = Workdir(workdir)
    run = outline(folder.path, config)
    metrics = MetricsFile(folder.metrics)

    def shapes(step: int) -> TrainState:
        if not run.steps.is_thawed_at(step - 1):
            return run.state
        return state_shapes(run.steps.thawed, run.examples, make_mesh())

    with closing(open_checkpoints(folder, run.config, metrics)) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"{folder.path} holds no checkpoint yet")
        lines = metrics.of_split("validation")
        state = restore_best(checkpoints, run.config, lines, shapes=shapes)
    return replace(run, state=state)


def evaluate(
    workdir: str | Path, split: str = "test", *, config: Config | None = None
) -> dict[str, float]:
    """The metrics of a finished or running run's best checkpoint on a split.

    Args:
        workdir: the run's folder.
        split: `train`, `validation` or `test`.
        config: the run's config, where config.json cannot bring it back.

    Raises:
        UserError: if there is no run, no checkpoint or no such split, or the data have other
            classes than the run was trained on.
    """
    trained = restore(workdir, config)
    splits = load_transformed(trained, Workdir(workdir))
    sums = trained.state.sums.emptied()
    add = jax.jit(trained.steps.evaluate)
    for batch in split_batches(splits, trained.transform, trained.config.batch_size, split):
        sums = add(trained.state, sums, batch)
    return sums.means()


def load_transformed(run: Trained, folder: Workdir) -> Splits:
    """Loads the data of a run, transformed; warns if they are not those that it was trained on.

    Raises:
        UserError: if the data cannot be loaded, or have other classes.
    """
    recorded = folder.data()
    splits = load_splits(run.config)
    changes = facts.differences(recorded, {**recorded, **splits.identity()})
    if changes:
        told = f"the data of {folder.path} are not those of the run:\n  " + "\n  ".join(changes)
        if splits.identity()["classes"] != recorded["classes"]:
            raise UserError(told)
        _LOGGER.warning("%s", told)
    return splits.map(run.transform.apply)


def restore_best(
    checkpoints: Checkpoints,
    config: Config,
    lines: Sequence[dict[str, Any]],
    *,
    shapes: Callable[[int], TrainState],
    state: TrainState | None = None,
) -> TrainState:
    """The best state by these lines of metrics; the newest one where none has a line.

    What is damaged is named by a warning, and the next best taken.

    Args:
        checkpoints: where states are.
        config: the run, whose selection decides.
        lines: those of the validation split.
        shapes: gives the shapes of the state of a step.
        state: one that need not be read, where it is at hand.

    Raises:
        CorruptCheckpoint: if all are.
    """
    at_hand = None if state is None else int(state.step)
    available = {*checkpoints.steps(), *([] if at_hand is None else [at_hand])}
    while True:
        candidates = [line for line in lines if line["step"] in available]
        best = config.best_step(candidates)
        step = max(available) if best is None else best
        if state is not None and step == at_hand:
            return state
        try:
            return checkpoints.restore(shapes(step), step)
        except CorruptCheckpoint as error:
            available.remove(step)
            if not available:
                raise
            _LOGGER.warning("%s; the next best one is used", error)


def open_checkpoints(folder: Workdir, config: Config, metrics: MetricsFile) -> Checkpoints:
    """The checkpoints of a run; the best one is told from its metrics."""
    return Checkpoints(
        folder.checkpoints,
        keep=config.keep_checkpoints,
        best_step=lambda: config.best_step(metrics.of_split("validation")),
        last_line=metrics.sync,
    )
