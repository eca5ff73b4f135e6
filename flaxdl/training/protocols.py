"""Protocols of the training loop: a run, and the files and signals of its session."""

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import jax
import numpy as np

from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.placement import Placement
from flaxdl.training.interruption import Interruption
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.times import Times
from flaxdl.training.writers.metrics_file import MetricsFile


class TrainingRun(Protocol):
    """A run to train; `flaxdl.runs.setup.Setup` is one."""

    @property
    def config(self) -> Any:
        """A `flaxdl.Config`."""
        ...

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices."""
        ...

    @property
    def placement(self) -> Placement:
        """Placement of the state on the devices."""
        ...

    @cached_property
    def steps(self) -> Steps:
        """The pure functions."""
        ...

    @property
    def total_steps(self) -> int:
        """Length of the run."""
        ...

    @property
    def log_every(self) -> int:
        """Steps between two training lines."""
        ...

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations, each followed by a checkpoint."""
        ...

    @property
    def evaluated_splits(self) -> Sequence[str]:
        """Those of `validation` and `test` that are measured."""
        ...

    @cached_property
    def data_on_devices(self) -> Mapping[str, jax.Array] | None:
        """The examples that training batches refer to by index; None if batches hold them."""
        ...

    def fed_batches(self, start_step: int) -> Generator[dict[str, np.ndarray]]:
        """This process's rows of the endless training batches from a step on."""
        ...

    def evaluation_batches(self, split: str) -> Generator[dict[str, np.ndarray]]:
        """This process's rows of batches with each example of a split once."""
        ...

    def shapes(self, step: int) -> TrainState:
        """The state after so many steps, as shapes with their places on the devices."""
        ...


class TrainingSession(Protocol):
    """Files and signals of a run while it trains; `flaxdl.runs.session.Session` is one."""

    metrics: MetricsFile
    checkpoints: Checkpoints
    interruption: Interruption
    times: Times
