"""A run from end to end: config → data → model → state → loop."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
from rich.console import Console

from flaxdl.analysis.memory import memory_explained
from flaxdl.backend.malloc import compute_in_calling_thread, keep_freed_memory
from flaxdl.config import Config
from flaxdl.data import facts
from flaxdl.errors import UserError
from flaxdl.report.write import report_run
from flaxdl.runs.config_json import differences, to_json
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.restored import Trained, open_checkpoints, restore_best
from flaxdl.runs.setup import Setup, set_up
from flaxdl.runs.summary import devices, summary
from flaxdl.runs.tokens import with_tokenizer
from flaxdl.runs.workdir import Workdir, recorded_versions
from flaxdl.training.distributed.processes import check_agreement, is_first, of_first, together
from flaxdl.training.interruption import Interruption
from flaxdl.training.loop import Loop, Writer
from flaxdl.training.metrics import MetricsFile
from flaxdl.training.overfitting import is_learned, verdict
from flaxdl.training.times import Times, load_times
from flaxdl.training.writers.console import ConsoleWriter, describe
from flaxdl.training.writers.tensorboard import TensorBoardWriter
from flaxdl.training.writers.weights_and_biases import WeightsAndBiasesWriter

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`: that of the test split, where there is one."""
    variables: dict[str, Any]
    """The variables that it was measured with, for `model.apply`."""
    model: nn.Module
    """The network, with the sizes that its data decided."""


def train(
    config: Config,
    workdir: str | Path,
    *,
    accept_changes: bool = False,
    report: bool = True,
    wandb: str | None = None,
    writers: Sequence[Writer] = (),
) -> Result:
    """Trains to the end, resuming from the newest checkpoint in the workdir.

    The best checkpoint on the validation split, or the last one where there is none, is evaluated
    on the test split once. A run with `overfit_batches` is not: it ends as soon as it has learned
    them by heart, with a verdict in place of evaluations and the report.

    On a CPU JAX computes in the thread that calls, and the process keeps the memory that it frees,
    from here on and after the run too (`flaxdl.backend.malloc`).

    Args:
        config: the run.
        workdir: folder for checkpoints and metrics; made if it is missing.
        accept_changes: resume although the config, the data or the lines in `metrics.jsonl` are not
            those that the run began with; each difference is logged.
        report: writes `report.html` at the end, a page to look at.
        wandb: project of Weights & Biases that gets the metrics as well.
        writers: where else they go, such as `flaxdl.report.LiveCurve`; closed at the end.

    Raises:
        UserError: if config, data, weights and workdir do not fit together, saying where, or if
            the training step does not fit into the memory of a device.
        Diverged: if loss or gradients were not finite for too long.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        SaveError: if the last checkpoint or the metrics could not be written.
    """
    config = with_tokenizer(config)
    times = Times()
    compute_in_calling_thread()
    console = Console(stderr=True, quiet=not is_first(), markup=False)
    folder = Workdir(workdir)
    how = {"config": to_json(config), "mesh": to_json(config.mesh), "parallel": config.parallel}
    check_agreement(how | {"versions": recorded_versions()}, differences)
    interruption = Interruption()
    with ExitStack() as stack:
        stack.enter_context(interruption.listening())
        together(lambda: stack.enter_context(folder.locked()))
        check_config = partial(folder.check_config, config, accept_changes=accept_changes)
        together(check_config if is_first() else lambda: None)
        setup = together(lambda: set_up(config, folder.fitted(config.transform)))
        check_agreement(setup.facts(), facts.differences)
        if setup.mesh.devices.flat[0].platform == "cpu":
            keep_freed_memory()
        metrics = together(lambda: MetricsFile(folder.metrics, writes=is_first()))
        metrics.lines = of_first(metrics.lines)
        checkpoints = stack.enter_context(closing(open_checkpoints(folder, config, metrics)))
        start = checkpoints.recover()
        check_data = partial(folder.check_data, setup.facts(), accept_changes=accept_changes)
        has_other_data = of_first(together(check_data if is_first() else lambda: False))
        if start:
            together(partial(_check_metrics, metrics, checkpoints.last_line(start), accept_changes))
        # Before the workdir is claimed, so that a mistake in --init leaves nothing behind.
        if start:
            state = checkpoints.restore(setup.shapes(start), start)
        else:
            state = together(partial(initial_state, setup))

        wandb_writers = together(partial(_wandb_writers, wandb, folder, config, stack))

        def claim() -> None:
            folder.claim(config, setup.facts())
            setup.transform.save(folder.path)
            folder.sync()

        together(claim if is_first() else lambda: None)
        together(folder.check_shared)
        is_over = start >= setup.total_steps or _is_over(setup, metrics, start)
        metrics.rewind(start, keep_test=is_over and not has_other_data)
        lines_before, batches = len(metrics.lines), config.overfit_batches
        report = report and batches is None
        if start:
            times.go_on(load_times(folder.times)[0])
        console.print(summary(setup), markup=False, highlight=False, soft_wrap=True)
        if start:
            _announce(console, start, setup.total_steps)
            if is_first() and not is_over:
                folder.warn_of_other_versions()

        def all_writers() -> Iterator[Writer]:
            yield from writers
            yield TensorBoardWriter(folder.events, step=start)
            yield ConsoleWriter(setup.total_steps, console)

        loop = Loop(
            steps=setup.steps,
            mesh=setup.mesh,
            parallel=config.parallel,
            batch_size=config.batch_size,
            training_batches=setup.fed_batches,
            data=setup.data_on_devices,
            steps_per_call=config.steps_per_call,
            evaluation_batches=setup.evaluation_batches,
            has_validation=setup.splits.validation is not None and batches is None,
            log_every=setup.log_every,
            evaluate_every=setup.evaluate_every,
            max_bad_steps=config.max_bad_steps,
            rewind=config.rewind,
            selection=config.selection,
            overfit_batches=batches,
            metrics=metrics,
            checkpoints=checkpoints,
            shapes=setup.shapes,
            writers=[
                *wandb_writers,
                *(stack.enter_context(closing(writer)) for writer in all_writers()),
            ]
            if is_first()
            else (),
            interruption=interruption,
            times=times,
        )
        times_file = folder.times if is_first() and not is_over else None
        with interruption.postponed(), times.kept(times_file, devices(setup)):
            with times.spent("training"), memory_explained(setup):
                state = loop.run(state)
            state = restore_best(
                checkpoints,
                config,
                metrics.of_split("validation"),
                shapes=setup.shapes,
                state=state,
            )
            has_test = setup.splits.test is not None and batches is None
            if has_test and not metrics.of_split("test"):
                loop.write(int(state.step), "test", loop.evaluate(state, "test"))
            metrics.finish()
        is_new = len(metrics.lines) > lines_before
        if report and is_first() and (is_new or not folder.report.exists()):
            classes = setup.splits.classes
            run = Trained(
                setup.config, setup.transform, classes, setup.examples, setup.steps, state
            )
            with interruption.at_once():
                report_run(folder, run, setup.splits)
    last = metrics.lines[-1]
    finished = "finished" if is_new else "was already finished"
    is_of_best = last["split"] == "test" and metrics.of_split("validation")
    which = "best checkpoint, step" if is_of_best else "step"
    console.print(
        f"{folder.path} {finished}: {last['split']} {describe(last)} ({which} {last['step']})",
        highlight=False,
        soft_wrap=True,
    )
    if batches is not None:
        console.print(verdict(metrics.of_split("train"), batches), highlight=False, soft_wrap=True)
    if report and folder.report.exists():
        console.print(f"report: {folder.report}", highlight=False, soft_wrap=True)
    variables = {"params": state.params, **state.model_state}
    return Result(last, variables, setup.config.model)


def _is_over(setup: Setup, metrics: MetricsFile, step: int) -> bool:
    """Returns whether a run had ended at a step before its last one."""
    config, batches = setup.config, setup.config.overfit_batches
    if batches is not None and is_learned(metrics.of_split("train", until=step), batches):
        return True
    return config.selection.is_over(
        metrics.of_split("validation", until=step), config.task, after=setup.steps.thaw_step or 0
    )


def _wandb_writers(
    project: str | None, folder: Workdir, config: Config, stack: ExitStack
) -> list[Writer]:
    """What sends metrics to Weights & Biases, in the first process and if it is asked for.

    Raises:
        UserError: if it cannot be used.
    """
    if project is None or not is_first():
        return []
    writer = WeightsAndBiasesWriter(project, folder.path, config=to_json(config))
    return [stack.enter_context(closing(writer))]


def _check_metrics(metrics: MetricsFile, last_line: int | None, accept_changes: bool) -> None:
    """Checks that the lines that were written before a checkpoint are there."""
    fault = metrics.missing(last_line)
    if fault is None:
        return
    if not accept_changes:
        raise UserError(f"{fault}. Restore the file, or --accept-changes to resume without them")
    if is_first():
        _LOGGER.warning("%s; resuming without them", fault)


def _announce(console: Console, start: int, total_steps: int) -> None:
    """Says from which checkpoint a run resumes."""
    text = f"resuming from step {start} of {total_steps}"
    if start > total_steps:
        text = f"the newest checkpoint is of step {start}, after the last step {total_steps}"
    console.print(text, highlight=False, soft_wrap=True)
