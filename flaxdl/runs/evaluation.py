"""Evaluation of a run's best checkpoint on a split of its data."""

import logging
from contextlib import closing
from pathlib import Path

from flaxdl.config import Config
from flaxdl.data import Splits, facts
from flaxdl.errors import UserError
from flaxdl.runs.plan import Plan
from flaxdl.runs.remote_workdir import reading_copy
from flaxdl.runs.restored import restore
from flaxdl.runs.setup import load_splits, split_batches
from flaxdl.runs.workdir import Workdir
from flaxdl.training.evaluation import Evaluator

_LOGGER = logging.getLogger(__name__)


def evaluate(
    workdir: str | Path, split: str = "test", *, config: Config | None = None
) -> dict[str, float]:
    """Computes the metrics of a run's best checkpoint on a split; the run may still be training.

    Args:
        workdir: working directory of the run.
        split: `train`, `validation` or `test`.
        config: config of the run, needed only if it uses classes that are not part of flaxdl.

    Raises:
        UserError: if there is no run, checkpoint or split of that name, or if the classes of the
            data differ from those that the run was trained on.
    """
    folder = Workdir(reading_copy(workdir))
    run = restore(folder.path, config)
    splits = load_transformed(run, folder)
    size = run.inference_size(run.config.batch_size)
    with closing(split_batches(run, splits, split, batch_size=size)) as batches:
        evaluator = Evaluator(run.inference, run.mesh, run.classes)
        return evaluator.measure(run.state, map(run.put, batches))


def load_transformed(plan: Plan, folder: Workdir) -> Splits:
    """Loads and transforms the data of a run; warns if it has changed since training.

    Raises:
        UserError: if the data cannot be loaded, or if its classes have changed.
    """
    recorded = folder.data()
    splits = load_splits(plan.config)
    changes = facts.differences(recorded, {**recorded, **splits.identity()})
    if changes:
        listed = "\n  ".join(changes)
        message = f"the data differ from those that {folder.path} was trained on:\n  {listed}"
        if splits.identity()["classes"] != recorded["classes"]:
            raise UserError(message)
        _LOGGER.warning("%s", message)
    return splits.map(plan.transform.apply)
