"""A trained network as its run left it: the best checkpoint, and what it takes to use it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from flaxdl.config import Config
from flaxdl.data import Transform
from flaxdl.setup import Examples, load_splits, make_steps, split_batches, state_shapes
from flaxdl.training.checkpoints import Checkpoints
from flaxdl.training.metrics import MetricsFile
from flaxdl.training.sharding import make_mesh
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.workdir import Workdir


@dataclass(frozen=True)
class Trained:
    """A run's best checkpoint, and what it takes to use it."""

    config: Config
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


def restore(workdir: str | Path, config: Config | None = None) -> Trained:
    """Reads the best checkpoint of a finished or running run.

    Args:
        workdir: the run's folder.
        config: the run's config, where config.json cannot bring it back.

    Raises:
        ValueError: if there is no run or no checkpoint.
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
    steps = make_steps(config, transform, total_steps=1, steps_per_epoch=epoch)
    metrics = MetricsFile(folder.metrics)
    checkpoints = open_checkpoints(folder, config, metrics)
    try:
        available = checkpoints.steps()
        if not available:
            raise ValueError(f"{folder.path} holds no checkpoint yet")
        best = config.selection.best_step(metrics.of_split("validation"))
        step = best if best in available else available[-1]
        shapes = state_shapes(steps.behind(step), examples, make_mesh())
        state = checkpoints.restore(shapes, step)
    finally:
        checkpoints.close()
    classes = None if data["classes"] is None else tuple(data["classes"])
    return Trained(config, transform, classes, examples, steps, state)


def evaluate(
    workdir: str | Path, split: str = "test", *, config: Config | None = None
) -> dict[str, float]:
    """The metrics of a finished or running run's best checkpoint on a split.

    Args:
        workdir: the run's folder.
        split: `train`, `validation` or `test`.
        config: the run's config, where config.json cannot bring it back.

    Raises:
        ValueError: if there is no run, no checkpoint or no such split.
    """
    trained = restore(workdir, config)
    splits = load_splits(trained.config).map(trained.transform.apply)
    sums = trained.state.sums.emptied()
    add = jax.jit(trained.steps.evaluate)
    for batch in split_batches(splits, trained.transform, trained.config.batch_size, split):
        sums = add(trained.state, sums, batch)
    return sums.means()


def open_checkpoints(folder: Workdir, config: Config, metrics: MetricsFile) -> Checkpoints:
    """The checkpoints of a run; the best one is told from its metrics."""
    return Checkpoints(
        folder.checkpoints,
        keep=config.keep_checkpoints,
        best_step=lambda: config.selection.best_step(metrics.of_split("validation")),
    )
