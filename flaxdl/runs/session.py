"""A session of training: what a run owns while it trains in its workdir."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from flaxdl.backend.malloc import computing_in_calling_thread, keeping_freed_memory
from flaxdl.config import Config
from flaxdl.data import facts
from flaxdl.errors import UserError
from flaxdl.runs.config_json import differences, to_json
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.restored import open_checkpoints, restore_best
from flaxdl.runs.setup import Setup, set_up
from flaxdl.runs.summary import devices
from flaxdl.runs.workdir import Workdir, recorded_versions
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.collectives import (
    broadcast_from_first,
    check_agreement,
    is_first,
    run_on_all,
)
from flaxdl.training.interruption import Interruption
from flaxdl.training.loop import has_ended
from flaxdl.training.state import TrainState
from flaxdl.training.times import Times, load_times
from flaxdl.training.writers.metrics_file import MetricsFile

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Session:
    """Lock, signals, metrics, checkpoints and clock of a run, from `open` to its end.

    All processes of a run open it together and call its methods together. What only the first one
    may do, such as writing, is done there, and a failure is raised in all.
    """

    folder: Workdir
    config: Config
    accept_changes: bool
    """Resume although config, data or metrics differ from those that the run began with."""
    metrics: MetricsFile
    checkpoints: Checkpoints
    interruption: Interruption
    times: Times
    start: int = field(default=0, init=False)
    """The step that the run resumes from; 0 for a new run."""
    is_over: bool = field(default=False, init=False)
    """True if the run had ended before this session."""

    keeps_test: bool = field(default=False, init=False)
    """True if the test metrics of that run still hold."""

    @classmethod
    @contextmanager
    def open(
        cls, workdir: str | Path, config: Config, *, accept_changes: bool = False
    ) -> Iterator[Self]:
        """Locks a workdir and checks that it is free, or holds a run of this config.

        On a CPU JAX computes in the thread that calls, and the process keeps the memory that it
        frees, until the session ends.

        Raises:
            UserError: if it does not, another run is training there, or the processes of this run
                were started differently.
        """
        times, interruption, folder = Times(), Interruption(), Workdir(workdir)
        layout = {"mesh": to_json(config.mesh), "parallel": config.parallel}
        start = {"config": to_json(config), **layout, "versions": recorded_versions()}
        with computing_in_calling_thread(), ExitStack() as stack:
            check_agreement(start, differences)
            stack.enter_context(keeping_freed_memory())
            stack.enter_context(interruption.listening())
            run_on_all(lambda: stack.enter_context(folder.locked()))
            _on_first(partial(folder.check_config, config, accept_changes=accept_changes))
            metrics = run_on_all(lambda: MetricsFile(folder.metrics, writes=is_first()))
            metrics.lines = broadcast_from_first(metrics.lines)
            checkpoints = stack.enter_context(closing(open_checkpoints(folder, config, metrics)))
            yield cls(folder, config, accept_changes, metrics, checkpoints, interruption, times)

    def set_up(self) -> Setup:
        """Loads the data and checks that they fit the config.

        Raises:
            UserError: if they do not, or differ between processes.
        """
        folder, config = self.folder, self.config
        setup = run_on_all(lambda: set_up(config, folder.fitted(config.transform)))
        check_agreement(setup.facts(), facts.differences)
        return setup

    def begin(self, setup: Setup) -> TrainState:
        """The state of the newest checkpoint, or the initial one.

        It is made before the workdir is claimed, so that a mistake in `config.init` leaves nothing
        behind.

        Raises:
            UserError: if the run began with other data, lines of metrics are missing, or the
                initial weights do not fit.
            CorruptCheckpoint: if there are checkpoints and all are damaged.
        """
        accept = self.accept_changes
        check_data = partial(self.folder.check_data, setup.facts(), accept_changes=accept)
        has_other_data = broadcast_from_first(_on_first(check_data))
        self.start = self.checkpoints.recover()
        if self.start:
            run_on_all(partial(self._check_metrics, self.checkpoints.last_line(self.start)))
            state = self.checkpoints.restore(setup.shapes(self.start), self.start)
        else:
            state = run_on_all(partial(initial_state, setup))
        self.is_over = has_ended(setup, self.metrics, self.start)
        self.keeps_test = self.is_over and not has_other_data
        return state

    def claim(self, setup: Setup) -> None:
        """Records the run in the workdir, and drops lines of metrics that are measured again.

        Raises:
            UserError: if the workdir cannot be written, or other processes do not see it.
        """

        def write() -> None:
            self.folder.claim(self.config, setup.facts())
            setup.transform.save(self.folder.path)
            self.folder.sync()

        _on_first(write)
        run_on_all(self.folder.check_shared)
        self.metrics.rewind(self.start, keep_test=self.keeps_test)
        if self.start:
            self.times.go_on(load_times(self.folder.times)[0])
            _on_first(self.folder.warn_of_other_versions if not self.is_over else lambda: None)

    @contextmanager
    def training(self, setup: Setup) -> Iterator[None]:
        """Within, signals wait for the loop to save the state, and the time spent is recorded."""
        _ = setup.data_on_devices  # which are copied here, where a signal need not wait
        file = self.folder.times if is_first() and not self.is_over else None
        with self.interruption.postponed(), self.times.kept(file, devices(setup)):
            yield

    def best(self, setup: Setup, state: TrainState) -> TrainState:
        """The state of the best checkpoint, or the newest if there are no evaluations.

        Args:
            setup: the run.
            state: the last state, which is not read from disk if it is the best.
        """
        evaluations = self.metrics.of_split("validation")
        return restore_best(setup, self.checkpoints, evaluations, state=state)

    def _check_metrics(self, last_line: int | None) -> None:
        """Checks that the lines that were written before a checkpoint are there."""
        fault = self.metrics.missing(last_line)
        if fault is None:
            return
        if not self.accept_changes:
            raise UserError(
                f"{fault}. Restore the file, or --accept-changes to resume without them"
            )
        if is_first():
            _LOGGER.warning("%s; resuming without them", fault)


def _on_first(function: Callable[[], T]) -> T | None:
    """Calls a function in the first process; where it fails, it fails in all."""
    return run_on_all(function if is_first() else lambda: None)
