"""A run from end to end: config → data → model → state → loop."""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from flaxdl.config import Config
from flaxdl.data import Dataset
from flaxdl.setup import Setup, set_up, split_batches
from flaxdl.trained import open_checkpoints, restore
from flaxdl.training.checkpoints import Checkpoints
from flaxdl.training.console import ConsoleWriter, describe
from flaxdl.training.freezing import split as split_frozen
from flaxdl.training.interruption import Interruption
from flaxdl.training.loop import Loop
from flaxdl.training.metrics import MetricsFile
from flaxdl.training.sharding import create_on, replicated
from flaxdl.training.state import TrainState
from flaxdl.training.tensorboard import TensorBoardWriter
from flaxdl.weights import load_weights, state_dict
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
        ValueError: if config, data, weights and workdir do not fit together, saying where.
        Diverged: if loss or gradients were not finite for too long.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    console = Console(stderr=True)
    folder = Workdir(workdir)
    setup = set_up(config)
    # Before the workdir is claimed, so that a mistake in --init leaves nothing behind.
    state = None if folder.has_checkpoints else initial_state(setup)
    if accept_changes and folder.has_checkpoints:
        with closing(open_checkpoints(folder, config, MetricsFile(folder.metrics))) as checkpoints:
            start = max(checkpoints.steps(), default=0)
            checkpoints.check(setup.shapes(start), start)
    folder.claim(config, data=setup.facts(), accept_changes=accept_changes)
    setup.transform.save(folder.path)
    metrics = MetricsFile(folder.metrics)
    interruption = Interruption()
    with ExitStack() as stack:
        stack.enter_context(interruption.listening())
        checkpoints = stack.enter_context(closing(open_checkpoints(folder, config, metrics)))
        start = max(checkpoints.steps(), default=0)
        is_over = start == setup.total_steps or config.selection.is_over(
            metrics.of_split("validation"), after=setup.steps.thaw_step or 0
        )
        metrics.rewind(start, keep_test=is_over)
        lines_before = len(metrics.lines)
        if state is None:
            state = checkpoints.restore(setup.shapes(start), start)
        console.print(_summary(setup, state), highlight=False, soft_wrap=True)
        if start:
            console.print(f"going on from step {start} of {setup.total_steps}", highlight=False)
        loop = Loop(
            steps=setup.steps,
            mesh=setup.mesh,
            batch_size=config.batch_size,
            training_batches=setup.training_batches,
            evaluation_batches=partial(
                split_batches, setup.splits, setup.transform, config.batch_size
            ),
            has_validation=setup.splits.validation is not None,
            log_every=config.log_every,
            evaluate_every=max(round(config.evaluate_every * setup.steps_per_epoch), 1),
            max_bad_steps=config.max_bad_steps,
            selection=config.selection,
            metrics=metrics,
            checkpoints=checkpoints,
            writers=(
                stack.enter_context(closing(ConsoleWriter(setup.total_steps, console))),
                stack.enter_context(closing(TensorBoardWriter(folder.events, step=start))),
            ),
            interruption=interruption,
        )
        state = loop.run(state)
        state = _at_best(state, setup, metrics, checkpoints)
        if setup.splits.test is not None and not metrics.of_split("test"):
            loop.write(int(state.step), "test", loop.evaluate(state, "test"))
    last = metrics.lines[-1]
    finished = "finished" if len(metrics.lines) > lines_before else "was already finished"
    console.print(
        f"{folder.path} {finished}: {last['split']} {describe(last)} (step {last['step']})",
        highlight=False,
        soft_wrap=True,
    )
    return Result(last, {"params": state.params, **state.model_state})


def initial_state(setup: Setup) -> TrainState:
    """The state before the first step, with the weights that `config.init` asks for.

    Raises:
        ValueError: if the weights cannot be found or read, or do not fit the model.
    """
    state = create_on(setup.mesh, partial(setup.steps.initial_state, setup.examples))
    init = setup.config.init
    if init.weights is None:
        return state
    source = init.weights
    if Workdir(source).has_checkpoints:
        try:
            source = state_dict(restore(source).variables)
        except ValueError as error:
            raise ValueError(
                f"init.weights: the run {init.weights} cannot be read: {error}. "
                "A file that `python -m flaxdl export` made of it will do as well"
            ) from error
    variables = {"params": state.params, **state.model_state}
    loaded = load_weights(variables, source, omit=init.omit)
    placed = jax.device_put(loaded, replicated(setup.mesh))
    return state.replace(params=placed.pop("params"), model_state=placed)


def _at_best(
    state: TrainState, setup: Setup, metrics: MetricsFile, checkpoints: Checkpoints
) -> TrainState:
    best = setup.config.selection.best_step(metrics.of_split("validation"))
    if best in (None, int(state.step)):
        return state
    return checkpoints.restore(setup.shapes(best), best)


def _summary(setup: Setup, state: TrainState) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    parameters = f"{count:,} parameters"
    if setup.config.freeze:
        trained, _ = split_frozen(state.params, setup.config.freeze)
        trained_count = sum(leaf.size for leaf in jax.tree.leaves(trained))
        at_first = "" if setup.config.freeze_epochs is None else " at first"
        parameters += f", {trained_count:,} of them trained{at_first}"
    counts = ", ".join(
        f"{len(dataset):,} {name}"
        for name, dataset in vars(setup.splits).items()
        if isinstance(dataset, Dataset)
    )
    device = setup.mesh.devices.flat[0].device_kind
    return (
        f"{type(setup.config.model).__name__} with {parameters}; {counts} examples; "
        f"{setup.config.precision} on {setup.mesh.size} x {device}"
    )
