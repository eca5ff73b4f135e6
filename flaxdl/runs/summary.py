"""Console summary of a run, before and after training."""

from typing import Any

import jax

from flaxdl.data import Dataset, class_counts
from flaxdl.runs.plan import Plan
from flaxdl.runs.setup import Setup
from flaxdl.runs.workdir import Workdir
from flaxdl.training.freezing import split as split_frozen
from flaxdl.training.overfitting import verdict
from flaxdl.training.writers.console import describe, describe_test
from flaxdl.training.writers.metrics_file import MetricsFile


def summarize(setup: Setup) -> str:
    """Summarizes model size, dataset sizes, number of steps, precision and devices of a run."""
    return f"{_model(setup)}\n{_data(setup)}\n{_work(setup)}"


def _model(setup: Setup) -> str:
    config, params = setup.config, setup.shapes().params
    count = _count(params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    text = f"{type(config.model).__name__} with {count:,} parameters ({size / 2**20:,.1f} MiB)"
    if config.freeze:
        trained, _ = split_frozen(params, config.freeze)
        at_first = "" if config.freeze_epochs is None else " at first"
        text += f", {_count(trained):,} trainable{at_first}"
    if config.ema.decay is not None:
        text += f"; evaluated with EMA (decay {config.ema.decay:g})"
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
    """Describes the devices used by a run: number, kind, mesh and processes."""
    mesh = plan.mesh
    text = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    if mesh.shape["data"] < mesh.size:
        sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
        text += f" ({sizes})"
    if jax.process_count() > 1:
        text += f" in {jax.process_count()} processes"
    return text


def outcome(plan: Plan, folder: Workdir, metrics: MetricsFile) -> str:
    """Describes the outcome of a run: its final metrics and the verdict of `overfit_batches`.

    Args:
        plan: plan of the run.
        folder: workdir of the run.
        metrics: metrics of the run.
    """
    last, batches = metrics.lines[-1], plan.config.overfit_batches
    if metrics.appended:
        # The console writer has printed the metrics.
        text = f"{folder.path} {_end(plan, metrics)}"
    else:
        is_best = bool(metrics.of_split("validation"))
        which = f"{last['split']} (step {last['step']})"
        if last["split"] == "test":
            which = describe_test(last["step"], is_best=is_best)
        text = f"{folder.path} was already finished: {which}  {describe(last)}"
    return text if batches is None else f"{text}\n{verdict(metrics.of_split('train'), batches)}"


def _end(plan: Plan, metrics: MetricsFile) -> str:
    """Says that a run has finished, and whether by early stopping."""
    evaluations, selection = metrics.of_split("validation"), plan.config.selection
    step = max(line["step"] for line in metrics.lines)
    after = plan.steps.unfreeze_step or 0
    if step >= plan.total_steps or not selection.should_stop(
        evaluations, plan.config.task, after=after
    ):
        return "finished"
    return (
        f"finished early, at step {step} of {plan.total_steps}: validation {selection.metric} has "
        f"not improved in the last {selection.patience} evaluations"
    )


def _count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
