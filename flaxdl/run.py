"""A run from end to end: config → data → model → state → loop."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
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
    with Session.open(workdir, config, accept_changes=accept_changes) as session:
        setup = session.set_up()
        state = session.begin(setup)
        console = _announced(setup, session)
        own = [ReportWriter(session.folder, setup.splits)] if report else []
        with _opened([*writers, *own], setup, session, console, wandb) as outputs:
            session.claim(setup)
            loop = Loop(setup, session, outputs)
            with session.training(setup):
                with memory_explained(setup):
                    state = loop.run(state)
                best = session.best(setup, state)
                loop.test(best)
                session.metrics.finish()
            run = RestoredRun.extended(setup, state=best)
            with session.interruption.at_once():
                for writer in outputs:
                    writer.finish(run)
    console.print(outcome(setup, session.folder, session.metrics, is_new=session.has_measured))
    if report and session.folder.report.exists():
        console.print(f"report: {session.folder.report}")
    return Result(session.metrics.lines[-1], run)


def _announced(setup: Setup, session: Session) -> Console:
    """Says what is about to be done, and returns the console of this process."""
    console = Console(stderr=True, quiet=not is_first(), markup=False, soft_wrap=True)
    console.print(summarize(setup))
    start, total_steps = session.start, setup.total_steps
    if start > total_steps:
        where = f"after the last step {total_steps}"
        console.print(f"the newest checkpoint is of step {start}, {where}")
    elif start:
        console.print(f"resuming from step {start} of {total_steps}")
    if start and is_first() and not session.is_over:
        session.folder.warn_of_other_versions()
    return console


@contextmanager
def _opened(
    writers: Sequence[Writer],
    setup: Setup,
    session: Session,
    console: Console,
    wandb: str | None,
) -> Iterator[list[Writer]]:
    """These writers and flaxdl's own in the first process, none in the others; closed at the end.

    Raises:
        UserError: if one is not a `Writer`, or Weights & Biases cannot be used.
    """
    for writer in writers:
        if not isinstance(writer, Writer):
            raise UserError(f"writers must be subclasses of flaxdl.Writer, got {writer!r:.200}")

    def open_all() -> Iterator[Writer]:
        folder = session.folder
        if wandb is not None:  # first, since it may refuse
            yield WeightsAndBiasesWriter(wandb, folder.path, config=to_json(session.config))
        yield from writers
        yield TensorBoardWriter(folder.events, step=session.start)
        yield ConsoleWriter(setup.total_steps, console)

    with ExitStack() as stack:
        opened = (stack.enter_context(closing(writer)) for writer in open_all())
        yield run_on_all(lambda: list(opened) if is_first() else [])
