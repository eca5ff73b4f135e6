"""Evaluation of a run's best checkpoint on a split of its data."""

import logging
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from flaxdl.config import Config
from flaxdl.data import Splits, facts
from flaxdl.errors import UserError
from flaxdl.runs.plan import Plan
from flaxdl.runs.restored import restore
from flaxdl.runs.setup import load_splits, split_batches
from flaxdl.runs.workdir import Workdir
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.placement import in_turn
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps

_LOGGER = logging.getLogger(__name__)


def evaluate(
    workdir: str | Path, split: str = "test", *, config: Config | None = None
) -> dict[str, float]:
    """The metrics of a finished or running run's best checkpoint on a split.

    Args:
        workdir: the run's folder.
        split: `train`, `validation` or `test`.
        config: the run's config, if config.json needs classes of the user's own.

    Raises:
        UserError: if there is no run, no checkpoint or no such split, or the data have other
            classes than the run was trained on.
    """
    run = restore(workdir, config)
    splits = load_transformed(run, Workdir(workdir))
    size = run.inference_size(run.config.batch_size)
    with closing(split_batches(run, splits, split, batch_size=size)) as batches:
        return measure(run.inference, run.state, map(run.put, batches), mesh=run.mesh)


def measure(
    steps: Steps, state: TrainState, batches: Iterable[Mapping[str, Any]], *, mesh: Mesh
) -> dict[str, float]:
    """The metrics of a state over batches, every example counted once.

    Args:
        steps: the functions of the run.
        state: its state, on the devices of the mesh.
        batches: on the same devices.
        mesh: the devices.
    """
    add = jax.jit(steps.evaluate, donate_argnums=1, out_shardings=replicated(mesh))
    sums = state.sums.emptied()
    for batch in batches:
        sums = in_turn(add(state, sums, batch), mesh)
    return sums.means()


def load_transformed(plan: Plan, folder: Workdir) -> Splits:
    """Loads the data of a run, transformed; warns if they are not those that it was trained on.

    Raises:
        UserError: if the data cannot be loaded, or have other classes.
    """
    recorded = folder.data()
    splits = load_splits(plan.config)
    changes = facts.differences(recorded, {**recorded, **splits.identity()})
    if changes:
        listed = "\n  ".join(changes)
        message = f"the data of {folder.path} are not those of the run:\n  {listed}"
        if splits.identity()["classes"] != recorded["classes"]:
            raise UserError(message)
        _LOGGER.warning("%s", message)
    return splits.map(plan.transform.apply)
