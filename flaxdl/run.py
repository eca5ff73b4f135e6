"""A run from end to end: config → data → model → state → loop."""

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
from flaxdl.runs.restored import RestoredRun
from flaxdl.runs.session import Session
from flaxdl.runs.setup import Setup
from flaxdl.runs.summary import outcome, summarize
from flaxdl.runs.tokens import with_tokenizer
from flaxdl.training.distributed.collectives import is_first, run_on_all
from flaxdl.training.loop import Loop
from flaxdl.training.writers.console import ConsoleWriter
from flaxdl.training.writers.tensorboard import TensorBoardWriter
from flaxdl.training.writers.weights_and_biases import WeightsAndBiasesWriter
from flaxdl.training.writers.writer import Writer


@dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`: that of the test split, if there is one."""
    run: RestoredRun
    """The run with the state that was measured."""

    @property
    def model(self) -> nn.Module:
        """The network, with the sizes that its data decided."""
        return self.run.model

    @property
    def variables(self) -> dict[str, Any]:
        """The trained variables, for `model.apply`."""
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
    """Trains to the end, resuming from the newest checkpoint in the workdir.

    The best checkpoint on the validation split, or the last one if there is none, is evaluated once
    on the test split.

    Args:
        config: the run.
        workdir: folder for checkpoints and metrics; made if it is missing.
        accept_changes: resume although the config, the data or the lines in `metrics.jsonl` are not
            those that the run began with; each difference is logged.
        report: whether to write `report.html` at the end.
        wandb: project of Weights & Biases that gets the metrics as well.
        writers: where else metrics go, such as `flaxdl.LiveCurve`; closed at the end.

    Raises:
        UserError: if config, data, weights and workdir do not fit together, saying where, or if
            the training step does not fit into the memory of a device.
        Diverged: if loss or gradients were not finite for too long.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
        SaveError: if the last checkpoint or the metrics could not be written.
    """
    config = with_tokenizer(config)
    report = report and config.overfit_batches is None
    with (
        Session.open(workdir, config, accept_changes=accept_changes) as session,
        ExitStack() as opened,
    ):
        run_on_all(partial(_check_writers, writers))
        setup = session.set_up()
        state = session.begin(setup)
        outputs = run_on_all(partial(_open_tracker, wandb, session, opened))  # may refuse
        session.claim(setup)
        console = _announced(setup, session)
        own = [ReportWriter(session.folder, setup.splits)] if report else []
        outputs += _open([*writers, *own], setup, session, console, opened)
        loop = Loop(setup, session, outputs)
        with session.training(setup):
            with memory_explained(setup):
                state = loop.run(state)
            state = session.best(setup, state)
            loop.test(state)
            session.metrics.finish()
        run = RestoredRun.of(setup, state)
        with session.interruption.at_once():
            for writer in outputs:
                writer.finish(run)
    console.print(outcome(setup, session.folder, session.metrics))
    if report and session.folder.report.exists():
        console.print(f"report: {session.folder.report}")
    return Result(session.metrics.lines[-1], run)


def _check_writers(writers: Sequence[Writer]) -> None:
    for writer in writers:
        if not isinstance(writer, Writer):
            raise UserError(f"writers must be of subclasses of flaxdl.Writer, got {writer!r:.200}")


def _open_tracker(project: str | None, session: Session, opened: ExitStack) -> list[Writer]:
    """The writer to a project of Weights & Biases in the first process, if there is one.

    Raises:
        UserError: if it cannot be used.
    """
    if project is None or not is_first():
        return []
    config = to_json(session.config)
    writer = WeightsAndBiasesWriter(project, session.folder.path, config=config)
    return [opened.enter_context(closing(writer))]


def _announced(setup: Setup, session: Session) -> Console:
    """Says what is about to be done, and returns the console of this process."""
    quiet = not is_first()
    console = Console(stderr=True, quiet=quiet, markup=False, highlight=False, soft_wrap=True)
    console.print(summarize(setup))
    start, total_steps = session.start, setup.total_steps
    if start > total_steps:
        where = f"after the last step {total_steps}"
        console.print(f"the newest checkpoint is of step {start}, {where}")
    elif start:
        console.print(f"resuming from step {start} of {total_steps}")
    return console


def _open(
    writers: Sequence[Writer],
    setup: Setup,
    session: Session,
    console: Console,
    opened: ExitStack,
) -> list[Writer]:
    """These writers and flaxdl's own in the first process, none in the others."""
    if not is_first():
        return []
    own = (
        lambda: TensorBoardWriter(session.folder.events, step=session.start),
        lambda: ConsoleWriter(setup.total_steps, console),
    )
    found = [opened.enter_context(closing(writer)) for writer in writers]
    return found + [opened.enter_context(closing(make())) for make in own]
