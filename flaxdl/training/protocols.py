"""Interfaces that the training loop needs: a run, and its files and signals."""

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
    """A run to train, implemented by `flaxdl.runs.setup.Setup`."""

    @property
    def config(self) -> Any:
        """The `flaxdl.Config` of the run."""
        ...

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, or of the columns of the labels; None if unnamed."""
        ...

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of devices."""
        ...

    @property
    def placement(self) -> Placement:
        """Placement of the state on the devices."""
        ...

    @cached_property
    def steps(self) -> Steps:
        """The training and evaluation steps."""
        ...

    @property
    def total_steps(self) -> int:
        """Length of the run in steps."""
        ...

    @property
    def log_every(self) -> int:
        """Steps between lines of training metrics."""
        ...

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations, each followed by a checkpoint."""
        ...

    @property
    def evaluated_splits(self) -> Sequence[str]:
        """The splits to evaluate, out of `validation` and `test`."""
        ...

    @cached_property
    def data_on_devices(self) -> Mapping[str, jax.Array] | None:
        """The examples that training batches index; None if the batches contain examples."""
        ...

    def fed_batches(self, start_step: int) -> Generator[dict[str, np.ndarray]]:
        """Yields this process's rows of the endless training batches, starting at a step."""
        ...

    def evaluation_batches(self, split: str) -> Generator[dict[str, np.ndarray]]:
        """Yields this process's rows of each evaluation batch of a split.

        Across all batches and processes, each example occurs exactly once.
        """
        ...

    def shapes(self, step: int) -> TrainState:
        """Returns the state after `step` steps as shapes with shardings."""
        ...


class TrainingSession(Protocol):
    """Files and signals of a run in training, implemented by `flaxdl.runs.session.Session`."""

    metrics: MetricsFile
    checkpoints: Checkpoints
    interruption: Interruption
    times: Times
