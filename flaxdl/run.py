"""A run from end to end: config → data → model → state → loop, and what is asked of it later."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from flaxdl.config import Config
from flaxdl.data import (
    Dataset,
    Splits,
    Transform,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from flaxdl.tokens import check_tokens
from flaxdl.training.checkpoints import Checkpoints
from flaxdl.training.console import ConsoleWriter, describe
from flaxdl.training.interruption import Interruption
from flaxdl.training.loop import Loop
from flaxdl.training.metrics import MetricsFile
from flaxdl.training.sharding import check_batch_size, create_on, make_mesh, shapes_on
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.tensorboard import TensorBoardWriter
from flaxdl.workdir import Workdir


@dataclass(frozen=True)
class Result:
    """What a run has come to."""

    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`: that of the test split, where there is one."""
    variables: dict[str, Any]
    """The variables that it was measured with, for `model.apply`."""


def train(config: Config, workdir: str | Path, *, accept_changes: bool = False) -> Result:
    """Trains to the end, going on from the newest checkpoint that the workdir holds.

    The best checkpoint on the validation split, or the last one where there is none, is evaluated
    on the test split once.

    Args:
        config: the run.
        workdir: folder for checkpoints and metrics; made if it is missing.
        accept_changes: goes on in a workdir that was begun with another config.

    Raises:
        ValueError: if config, data and workdir do not fit together, saying where.
        Diverged: if loss or gradients were not finite for too long.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    console = Console(stderr=True)
    folder = Workdir(workdir)
    mesh = make_mesh()
    check_batch_size(config.batch_size, mesh)
    splits, transform = _load_data(config)
    epoch = steps_per_epoch(len(splits.train), config.batch_size)
    total_steps = max(round(config.epochs * epoch), 1)
    examples = _shapes(splits.train, transform)
    steps = _steps(config, transform, total_steps)
    shapes = shapes_on(mesh, partial(steps.initial_state, examples))
    outputs = jax.eval_shape(steps.predict, shapes, examples)
    config.task.check(outputs, None if splits.classes is None else len(splits.classes))

    folder.claim(config, data=_facts(splits, examples), accept_changes=accept_changes)
    transform.save(folder.path)
    metrics = MetricsFile(folder.metrics)
    interruption = Interruption()
    with ExitStack() as stack:
        stack.enter_context(interruption.listening())
        checkpoints = stack.enter_context(closing(_checkpoints(folder, config, metrics)))
        start = max(checkpoints.steps(), default=0)
        is_over = start == total_steps or config.selection.is_over(metrics.of_split("validation"))
        metrics.rewind(start, keep_test=is_over)
        lines_before = len(metrics.lines)
        if checkpoints.steps():
            state = checkpoints.restore(shapes, start)
        else:
            state = create_on(mesh, partial(steps.initial_state, examples))
        console.print(_summary(config, splits, state, mesh), highlight=False, soft_wrap=True)
        if start:
            console.print(f"going on from step {start} of {total_steps}", highlight=False)
        loop = Loop(
            steps=steps,
            mesh=mesh,
            batch_size=config.batch_size,
            training_batches=lambda step: training_batches(
                splits.train,
                transform,
                batch_size=config.batch_size,
                seed=config.seed,
                start_step=step,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            evaluation_batches=partial(_evaluation_batches, splits, transform, config.batch_size),
            has_validation=splits.validation is not None,
            log_every=config.log_every,
            evaluate_every=max(round(config.evaluate_every * epoch), 1),
            max_bad_steps=config.max_bad_steps,
            selection=config.selection,
            metrics=metrics,
            checkpoints=checkpoints,
            writers=(
                stack.enter_context(closing(ConsoleWriter(total_steps, console))),
                stack.enter_context(closing(TensorBoardWriter(folder.events, step=start))),
            ),
            interruption=interruption,
        )
        state = loop.run(state)
        state = _at_best(state, shapes, config, metrics, checkpoints)
        if splits.test is not None and not metrics.of_split("test"):
            loop.write(int(state.step), "test", loop.evaluate(state, "test"))
    last = metrics.lines[-1]
    finished = "finished" if len(metrics.lines) > lines_before else "was already finished"
    console.print(
        f"{folder.path} {finished}: {last['split']} {describe(last)} (step {last['step']})",
        highlight=False,
        soft_wrap=True,
    )
    return Result(last, {"params": state.params, **state.model_state})


@dataclass(frozen=True)
class Trained:
    """A run's best checkpoint, and what it takes to use it."""

    config: Config
    transform: Transform
    """As it was fitted to the training split."""
    classes: tuple[str, ...] | None
    """What the labels are called, where they are classes."""
    examples: dict[str, jax.ShapeDtypeStruct]
    """A batch of one example, as shapes."""
    steps: Steps
    state: TrainState


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
    steps = _steps(config, transform, total_steps=1)
    metrics = MetricsFile(folder.metrics)
    checkpoints = _checkpoints(folder, config, metrics)
    try:
        available = checkpoints.steps()
        if not available:
            raise ValueError(f"{folder.path} holds no checkpoint yet")
        best = config.selection.best_step(metrics.of_split("validation"))
        shapes = shapes_on(make_mesh(), partial(steps.initial_state, examples))
        state = checkpoints.restore(shapes, best if best in available else available[-1])
    finally:
        checkpoints.close()
    return Trained(config, transform, data["classes"], examples, steps, state)


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
    splits = trained.config.data.load(trained.config.seed)
    if getattr(splits, split, None) is None:
        raise ValueError(f"the data have no {split} split")
    splits = splits.map(trained.transform.apply)
    sums = trained.state.sums.emptied()
    add = jax.jit(trained.steps.evaluate)
    for batch in _evaluation_batches(splits, trained.transform, trained.config.batch_size, split):
        sums = add(trained.state, sums, batch)
    return sums.means()


def _load_data(config: Config) -> tuple[Splits, Transform]:
    splits = config.data.load(config.seed)
    transform = config.transform.fit(splits.train)
    splits = splits.map(transform.apply)
    takes_tokens = hasattr(config.model, "vocab_size")
    for dataset in (splits.train, splits.validation, splits.test):
        if takes_tokens and dataset is not None and dataset.in_memory:
            check_tokens(config.model, dataset.arrays(), vocab_size=transform.vocab_size)
    return splits, transform


def _steps(config: Config, transform: Transform, total_steps: int) -> Steps:
    return Steps(
        model=config.model,
        task=config.task,
        optimizer=config.optimizer,
        total_steps=total_steps,
        precision=config.precision,
        seed=config.seed,
        normalize=transform.normalize,
    )


def _shapes(dataset: Dataset, transform: Transform) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of one example, as shapes."""
    batch = transform.prepare(dataset.gather(np.arange(1)), draws={})
    batch |= {"weight": np.ones(1, np.float32)}
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}


def _facts(splits: Splits, examples: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """What a prediction has to know about the data."""
    return {
        "classes": splits.classes,
        "example": {
            name: {"shape": x.shape[1:], "dtype": str(x.dtype)} for name, x in examples.items()
        },
    }


def _evaluation_batches(
    splits: Splits, transform: Transform, batch_size: int, split: str
) -> Iterator[dict[str, np.ndarray]]:
    return evaluation_batches(
        getattr(splits, split),
        transform,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _checkpoints(folder: Workdir, config: Config, metrics: MetricsFile) -> Checkpoints:
    return Checkpoints(
        folder.checkpoints,
        keep=config.keep_checkpoints,
        best_step=lambda: config.selection.best_step(metrics.of_split("validation")),
    )


def _at_best(
    state: TrainState,
    shapes: TrainState,
    config: Config,
    metrics: MetricsFile,
    checkpoints: Checkpoints,
) -> TrainState:
    best = config.selection.best_step(metrics.of_split("validation"))
    return state if best in (None, int(state.step)) else checkpoints.restore(shapes, best)


def _summary(config: Config, splits: Splits, state: TrainState, mesh: jax.sharding.Mesh) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    counts = ", ".join(
        f"{len(dataset):,} {name}"
        for name, dataset in vars(splits).items()
        if isinstance(dataset, Dataset)
    )
    device = mesh.devices.flat[0].device_kind
    return (
        f"{type(config.model).__name__} with {parameters:,} parameters; {counts} examples; "
        f"{config.precision} on {mesh.size} x {device}"
    )
