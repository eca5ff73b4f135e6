"""Training from end to end: config → data → model → state → loop."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
from rich.console import Console

from flaxdl.analysis.memory import memory_explained
from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.report.write import ReportWriter
from flaxdl.runs.config_json import to_json
from flaxdl.runs.remote_workdir import training_workdir
from flaxdl.runs.restored import RestoredRun
from flaxdl.runs.session import Session
from flaxdl.runs.setup import Setup
from flaxdl.runs.summary import outcome, summarize
from flaxdl.runs.tokens import with_default_tokenizer
from flaxdl.training.distributed.collectives import is_first, run_on_all
from flaxdl.training.interruption import Interrupted
from flaxdl.training.loop import Loop
from flaxdl.training.writers.console import ConsoleWriter
from flaxdl.training.writers.tensorboard import TensorBoardWriter
from flaxdl.training.writers.weights_and_biases import WeightsAndBiasesWriter
from flaxdl.training.writers.writer import Writer

_NO_REPORT = "report not written; run the same command to write it"


@dataclass(frozen=True)
class Result:
    """Result of a training run."""

    metrics: dict[str, Any]
    """Last line of `metrics.jsonl`: the test metrics, if there is a test split."""
    run: RestoredRun
    """Run with the state that was evaluated."""

    @property
    def model(self) -> nn.Module:
        """Model, with sizes that were None in the config inferred from the data."""
        return self.run.model

    @property
    def variables(self) -> dict[str, Any]:
        """Trained variables, for `model.apply`."""
        return self.run.variables


def train(
    config: Config,
    workdir: str | Path,
    *,
    accept_changes: bool = False,
    report: bool = True,
    wandb: str | None = None,
    writers: Sequence[Writer] = (),
) -> Result:
    """Trains a model, resuming from the latest checkpoint in the workdir if there is one.

    After training, the checkpoint with the best validation metrics, or the last one if there is no
    validation split, is evaluated once on the test split. Before, the task is tuned with this
    checkpoint on the validation split, if it needs that, see `Task.tuned`.

    >>> result = flaxdl.train(config, "runs/mine")
    >>> logits = result.model.apply(result.variables, images)

    Args:
        config: configuration of the run.
        workdir: folder for checkpoints and metrics, created if missing; or the URL of one in a
            bucket, such as `gs://bucket/run`.
        accept_changes: whether to resume even if the config, the data or the lines in
            `metrics.jsonl` have changed since the run began; each change is logged.
        report: whether to write `report.html` at the end.
        wandb: name of a Weights & Biases project to log the metrics to, if any.
        writers: additional metrics writers, such as `flaxdl.LiveCurve`; closed at the end.

    Returns:
        The final metrics and the trained model.

    Raises:
        UserError: if config, data, weights and workdir do not match (the message states the
            mismatch), or if the training step does not fit into the memory of a device.
        Diverged: if the loss or gradients are non-finite for `config.max_bad_steps` consecutive
            steps, or if the loss spikes again after repeated rollbacks.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved.
        SaveError: if the last checkpoint or the metrics cannot be written, or not be copied to the
            bucket.
    """
    config = with_default_tokenizer(config)
    report = report and config.overfit_batches is None
    with (
        training_workdir(workdir) as folder,
        Session.open(folder, config, accept_changes=accept_changes) as session,
        ExitStack() as opened,
    ):
        run_on_all(partial(_check_writers, writers))
        setup = session.set_up()
        state = session.begin(setup)
        outputs = run_on_all(partial(_open_tracker, wandb, session, opened))  # raises UserError
        session.claim(setup)
        console = _announced(setup, session)
        own = [ReportWriter(session.folder, setup.splits)] if report else []
        outputs += _open([*writers, *own], setup, session, console, opened)
        with session.training(setup):
            loop = Loop(setup, session, outputs)
            with memory_explained(setup):
                state = loop.run(state)
            state = session.best(setup, state)
            tuned = session.tuned(setup, state)
            if tuned is not setup:  # otherwise, the loop has already compiled the evaluation
                setup, loop = tuned, Loop(tuned, session, outputs)
            loop.test(state)
            session.metrics.finish()
        run = RestoredRun.of(setup, state)
        try:
            with session.interruption.immediate():
                for writer in outputs:
                    writer.finish(run)
        except Interrupted as interrupted:
            if not report or session.folder.report.exists():
                raise
            received = interrupted.received
            raise Interrupted(received, f"{received.name}: {_NO_REPORT}") from None
    console.print(outcome(setup, session.folder, session.metrics))
    if report and session.folder.report.exists():
        console.print(f"report: {session.folder.report}")
    return Result(session.metrics.lines[-1], run)


def _check_writers(writers: Sequence[Writer]) -> None:
    for writer in writers:
        if not isinstance(writer, Writer):
            raise UserError(f"writers must be instances of flaxdl.Writer, got {writer!r:.200}")


def _open_tracker(project: str | None, session: Session, opened: ExitStack) -> list[Writer]:
    """Creates the Weights & Biases writer in the first process, if a project is given.

    Raises:
        UserError: if Weights & Biases cannot be used.
    """
    if project is None or not is_first():
        return []
    config = to_json(session.config)
    writer = WeightsAndBiasesWriter(project, session.folder.path, config=config)
    return [opened.enter_context(closing(writer))]


def _announced(setup: Setup, session: Session) -> Console:
    """Prints the summary of the run and returns the console of this process."""
    quiet = not is_first()
    console = Console(stderr=True, quiet=quiet, markup=False, highlight=False, soft_wrap=True)
    console.print(summarize(setup))
    if session.weights is not None:
        console.print(session.weights)
    start, total_steps = session.start, setup.total_steps
    if start > total_steps:
        where = f"past the last step {total_steps}"
        console.print(f"the latest checkpoint, of step {start}, is {where}")
    elif start and not session.is_over:
        console.print(f"resuming from step {start} of {total_steps}")
    return console


def _open(
    writers: Sequence[Writer],
    setup: Setup,
    session: Session,
    console: Console,
    opened: ExitStack,
) -> list[Writer]:
    """Returns the given and the built-in writers in the first process, an empty list in others."""
    if not is_first():
        return []
    own = (
        lambda: TensorBoardWriter(session.folder.events, step=session.start),
        lambda: ConsoleWriter(
            console,
            total_steps=setup.total_steps,
            steps_per_epoch=setup.steps_per_epoch,
            has_validation="validation" in setup.evaluated_splits,
        ),
    )
    found = [opened.enter_context(closing(writer)) for writer in writers]
    return found + [opened.enter_context(closing(make())) for make in own]
