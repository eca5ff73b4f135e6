"""A run in a few lines: what it is about to do, and what has come of it."""

from typing import Any

import jax

from flaxdl.data import Dataset, class_counts
from flaxdl.runs.plan import Plan
from flaxdl.runs.setup import Setup
from flaxdl.runs.workdir import Workdir
from flaxdl.training.freezing import split as split_frozen
from flaxdl.training.overfitting import verdict
from flaxdl.training.writers.console import describe
from flaxdl.training.writers.metrics_file import MetricsFile


def summarize(setup: Setup) -> str:
    """The size of the model, of the data and of the work, and where it is done."""
    return f"{_model(setup)}\n{_data(setup)}\n{_work(setup)}"


def _model(setup: Setup) -> str:
    config, params = setup.config, setup.shapes().params
    count = _count(params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    text = f"{type(config.model).__name__} with {count:,} parameters ({size / 2**20:,.1f} MiB)"
    if config.freeze:
        trained, _ = split_frozen(params, config.freeze)
        at_first = "" if config.freeze_epochs is None else " at first"
        text += f", {_count(trained):,} of them trained{at_first}"
    return text


def _data(setup: Setup) -> str:
    counts = ", ".join(
        f"{len(dataset):,} {name}"
        for name, dataset in vars(setup.splits).items()
        if isinstance(dataset, Dataset)
    )
    batches = setup.config.overfit_batches
    text = f"{counts} examples"
    if batches is not None:
        text += f"; trains on {'1 batch' if batches == 1 else f'{batches} batches'} only"
    by_class = class_counts.describe(setup.splits)
    return text if by_class is None else f"{text}\n{by_class}"


def _work(setup: Setup) -> str:
    config = setup.config
    return (
        f"{setup.total_steps:,} steps of {config.batch_size:,} examples, {config.epochs:g} "
        f"epoch{'' if config.epochs == 1 else 's'}; "
        f"{config.precision} on {devices(setup)}"
    )


def devices(plan: Plan) -> str:
    """How many devices of which kind a run uses, and how they are arranged."""
    mesh = plan.mesh
    text = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    if mesh.shape["data"] < mesh.size:
        sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
        text += f" ({sizes})"
    if jax.process_count() > 1:
        text += f" in {jax.process_count()} processes"
    return text


def outcome(plan: Plan, folder: Workdir, metrics: MetricsFile) -> str:
    """The metrics at the end of a run, and a verdict if it was to overfit a few batches.

    Args:
        plan: the run.
        folder: where it is kept.
        metrics: its metrics.
    """
    last, batches = metrics.lines[-1], plan.config.overfit_batches
    is_of_best = last["split"] == "test" and metrics.of_split("validation")
    which = "best checkpoint, step" if is_of_best else "step"
    finished = "finished" if metrics.appended else "was already finished"
    text = f"{folder.path} {finished}: {last['split']} {describe(last)} ({which} {last['step']})"
    return text if batches is None else f"{text}\n{verdict(metrics.of_split('train'), batches)}"


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
