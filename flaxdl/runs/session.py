"""Training session: the resources that a run holds while it trains."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeVar

from flaxdl.backend.malloc import keep_freed_memory, synchronous_dispatch
from flaxdl.config import Config
from flaxdl.data import facts
from flaxdl.errors import UserError
from flaxdl.runs.config_json import differences, to_json
from flaxdl.runs.fitted_task import fitted_fields
from flaxdl.runs.initial_weights import described_initial_state
from flaxdl.runs.restored import open_checkpoints, restore_best
from flaxdl.runs.setup import Setup, set_up
from flaxdl.runs.summary import devices
from flaxdl.runs.tuned_task import read_tuned_fields, with_tuned_task, write_tuned_fields
from flaxdl.runs.workdir import Workdir, recorded_versions
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.collectives import (
    broadcast_from_first,
    check_agreement,
    is_first,
    run_on_all,
    run_on_first,
)
from flaxdl.training.interruption import Interruption
from flaxdl.training.loop import Loop, has_ended
from flaxdl.training.state import TrainState
from flaxdl.training.times import Times, load_times
from flaxdl.training.writers.metrics_file import MetricsFile

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Session:
    """Lock, signal handlers, metrics, checkpoints and timers of a run while it trains.

    All processes of a run must open a session and call its methods in the same order. Operations
    such as writing run in the first process only, and a failure is raised in all processes.
    """

    folder: Workdir
    config: Config
    accept_changes: bool
    """Resume even if the config or data has changed, or lines of metrics are missing."""
    metrics: MetricsFile
    checkpoints: Checkpoints
    interruption: Interruption
    times: Times
    start: int = field(default=0, init=False)
    """Step that the run resumes from; 0 for a new run."""
    weights: str | None = field(default=None, init=False)
    """Source of the initial weights; None if they are random or the run is resumed."""
    is_over: bool = field(default=False, init=False)
    """True if the run was already finished before this session."""
    keeps_test: bool = field(default=False, init=False)
    """True if the run was already finished and its test metrics are still valid."""

    @classmethod
    @contextmanager
    def open(
        cls, folder: Workdir, config: Config, *, accept_changes: bool = False
    ) -> Iterator[Self]:
        """Context manager that locks a workdir and yields its session.

        The workdir must be new or contain a run with the same config. On CPU, until the context is
        left, JAX dispatches synchronously and malloc keeps freed memory.

        Raises:
            UserError: if the workdir contains a run with another config, if another run is training
                there, or if the processes of this run were started with different configs or
                versions.
        """
        times, interruption = Times(), Interruption()
        layout = {"mesh": to_json(config.mesh), "parallel": config.parallel}
        start = {"config": to_json(config), **layout, "versions": recorded_versions()}
        with synchronous_dispatch(), ExitStack() as stack:
            check_agreement(start, differences)
            stack.enter_context(keep_freed_memory())
            stack.enter_context(interruption.listening())
            run_on_all(lambda: stack.enter_context(folder.locked()))
            run_on_first(partial(folder.check_config, config, accept_changes=accept_changes))
            metrics = run_on_all(lambda: MetricsFile(folder.metrics, writes=is_first()))
            metrics.lines = broadcast_from_first(metrics.lines)
            checkpoints = stack.enter_context(closing(open_checkpoints(folder, config, metrics)))
            yield cls(folder, config, accept_changes, metrics, checkpoints, interruption, times)

    def set_up(self) -> Setup:
        """Loads the data and checks that it matches the config.

        Raises:
            UserError: if the data does not match the config, or if it differs between processes.
        """
        folder, config = self.folder, self.config
        setup = run_on_all(
            lambda: set_up(config, folder.fitted(config.transform), folder.fitted_task(config))
        )
        check_agreement(setup.facts(), facts.differences)
        return setup

    def begin(self, setup: Setup) -> TrainState:
        """Restores the latest checkpoint, or creates the initial state.

        Must be called before `claim`, so that an error in `config.init` leaves no files.

        Raises:
            UserError: if the run began with other data, if lines of metrics are missing, or if the
                initial weights do not match the model.
            CorruptCheckpoint: if there are checkpoints, but all are corrupt.
        """
        accept = self.accept_changes
        check_data = partial(self.folder.check_data, setup.facts(), accept_changes=accept)
        has_other_data = broadcast_from_first(run_on_first(check_data))
        self.start = self.checkpoints.recover()
        if self.start:
            run_on_all(partial(self._check_metrics, self.checkpoints.last_line(self.start)))
            state = self.checkpoints.restore(setup.shapes(self.start), self.start)
        else:
            state, self.weights = run_on_all(partial(described_initial_state, setup))
        self.is_over = has_ended(setup, self.metrics, self.start)
        has_task = partial(self.folder.has_task_of, self.config)
        has_same_task = broadcast_from_first(run_on_first(has_task))
        self.keeps_test = self.is_over and bool(has_same_task) and not has_other_data
        return state

    def claim(self, setup: Setup) -> None:
        """Records the run in the workdir, and drops what will be recomputed.

        Raises:
            UserError: if the workdir cannot be written, or is not shared by all processes.
        """

        def write() -> None:
            if not self.keeps_test:  # before the data is recorded that it does not belong to
                self.folder.tuned_task.unlink(missing_ok=True)
            self.folder.claim(self.config, setup.facts())
            setup.transform.save(self.folder.path)
            self.folder.sync()

        run_on_first(write)
        run_on_all(self.folder.check_shared)
        self.metrics.truncate(self.start, keep_test=self.keeps_test)
        if self.start:
            self.times.resume_from(load_times(self.folder.times)[0])
            run_on_first(self.folder.warn_of_other_versions if not self.is_over else lambda: None)

    @contextmanager
    def training(self, setup: Setup) -> Iterator[None]:
        """Context manager for training that postpones signals and saves the times on exit."""
        _ = setup.data_on_devices  # copied here, before signals are deferred
        file = self.folder.times if is_first() and not self.is_over else None
        with self.interruption.postponed(), self.times.saved_to(file, devices(setup)):
            yield

    def best(self, setup: Setup, state: TrainState) -> TrainState:
        """Restores the best state, or the latest one if there are no evaluations.

        Args:
            setup: setup of the run.
            state: last state, returned without reading a checkpoint if it is the best.
        """
        evaluations = self.metrics.of_split("validation")
        return restore_best(setup, self.checkpoints, evaluations, state=state)

    def tuned(self, setup: Setup, state: TrainState) -> Setup:
        """Returns the setup with the task tuned on the validation split, and stores the task.

        Nothing changes if the task needs no tuning, or if there is no validation split. For a run
        that was already finished, the stored task is used.

        Args:
            setup: setup of the run.
            state: the best state.

        Raises:
            Interrupted: after a signal, once the state has been saved.
            SaveError: if the task cannot be stored.
        """
        path, step, task = self.folder.tuned_task, int(state.step), setup.config.task
        if not task.needs_tuning or "validation" not in setup.evaluated_splits:
            run_on_first(lambda: path.unlink(missing_ok=True))
            return setup
        fields = None
        if self.keeps_test:
            fields = broadcast_from_first(run_on_first(lambda: read_tuned_fields(path, step)))
        if fields is None:
            fields = fitted_fields(task, Loop(setup, self).tuned_task(state))
            run_on_first(partial(write_tuned_fields, path, step, fields))
            # Those of a report during training are of the task before tuning.
            run_on_first(lambda: self.folder.predictions.unlink(missing_ok=True))
        return with_tuned_task(setup, fields)

    def _check_metrics(self, last_line: int | None) -> None:
        """Checks that no lines of metrics up to the step `last_line` are missing."""
        fault = self.metrics.missing(last_line)
        if fault is None:
            return
        if not self.accept_changes:
            raise UserError(
                f"{fault}. Restore the file, or pass --accept-changes to resume without them"
            )
        if is_first():
            _LOGGER.warning("%s; resuming without them", fault)
