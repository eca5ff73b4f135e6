"""A run restored from its workdir: its plan, and the state of its best checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import flax.linen as nn
import jax
import numpy as np

from flaxdl.backend.xla_flags import warn_if_cpu_is_wrong
from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.runs.plan import Plan, with_sizes_of_data
from flaxdl.runs.workdir import Workdir
from flaxdl.training.checkpoints.folder import CorruptCheckpoint
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.placement import put_for_inference
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.writers.metrics_file import MetricsFile

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestoredRun(Plan):
    """A run's plan and its best checkpoint: everything needed to use the trained network."""

    state: TrainState
    """Without the optimizer's part, which only training needs."""

    @classmethod
    def of(cls, plan: Plan, state: TrainState) -> Self:
        """The run of a plan, in a state of it."""
        return cls.extended(plan, state=state.replace(optimizer_state=()))

    @property
    def model(self) -> nn.Module:
        """The network, with the sizes that its data decided."""
        return self.config.model

    @cached_property
    def inference(self) -> Steps:
        """The pure functions, for `evaluate` and `predict` alone.

        Parameters are used where they are: each device computes with its part, and a model that
        was trained sharded is never whole on one of them.
        """
        return replace(self.steps, mesh=None)

    def inference_size(self, size: int) -> int:
        """The next batch size, from this one on, that the devices of the mesh can share."""
        groups = self.mesh.shape["data"]
        return -(-size // groups) * groups

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """A batch [B, ...] on the devices, for `inference`; B is an `inference_size`."""
        return put_for_inference(batch, self.mesh)

    @property
    def variables(self) -> dict[str, Any]:
        """The trained variables, for `model.apply`, in float32."""
        return {"params": self.state.params, **self.state.model_state}


def read_plan(workdir: str | Path, config: Config | None = None) -> Plan:
    """Reads the plan of a run; neither its data nor a checkpoint is read.

    A run that was trained on a mesh of devices is restored on the same mesh, or, on another number
    of devices, on the nearest one that fits them (`MeshShape.fitted_to`).

    Args:
        workdir: the run's folder.
        config: the run's config, if config.json needs classes of the user's own.

    Raises:
        UserError: if there is no run, or the recorded facts about its data do not fit its config.
    """
    folder = Workdir(workdir)
    config = config or folder.config()
    data = folder.data()
    transform = config.transform.restore(folder.path)
    classes = None if data["classes"] is None else tuple(data["classes"])
    warn_if_cpu_is_wrong()
    plan = Plan(
        config=with_sizes_of_data(config, classes, transform),
        transform=transform,
        classes=classes,
        examples={
            name: jax.ShapeDtypeStruct((1, *array["shape"]), array["dtype"])
            for name, array in data["example"].items()
        },
        steps_per_epoch=data["steps_per_epoch"],
        mesh=make_mesh(folder.mesh_shape().fitted_to(len(jax.devices()))),
    )
    try:
        plan.check()
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the data that config.json in {folder.path} describes do not fit its config: {error}"
        ) from error
    return plan


def restore(workdir: str | Path, config: Config | None = None) -> RestoredRun:
    """Reads the best checkpoint of a finished or running run.

    >>> run = flaxdl.restore("runs/digits_cnn")
    >>> logits = run.model.apply(run.variables, images)

    Args:
        workdir: the run's folder.
        config: the run's config, if config.json needs classes of the user's own.

    Raises:
        UserError: if there is no run.
        CorruptCheckpoint: if all of its checkpoints are damaged.
    """
    folder = Workdir(workdir)
    plan = read_plan(folder.path, config)
    metrics = MetricsFile(folder.metrics)
    with closing(open_checkpoints(folder, plan.config, metrics)) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"{folder.path} holds no checkpoint yet")
        state = restore_best(plan, checkpoints, metrics.of_split("validation"))
    return RestoredRun.of(plan, state)


def restore_best(
    plan: Plan,
    checkpoints: Checkpoints,
    lines: Sequence[dict[str, Any]],
    *,
    state: TrainState | None = None,
) -> TrainState:
    """The best state by these lines of metrics; the newest one where none has a line.

    What is damaged is named by a warning, and the next best taken.

    Args:
        plan: the run, whose selection decides.
        checkpoints: where states are.
        lines: those of the validation split.
        state: a state in memory, which need not be read.

    Raises:
        CorruptCheckpoint: if all are.
    """
    in_memory = None if state is None else int(state.step)
    available = {*checkpoints.steps(), *([] if in_memory is None else [in_memory])}
    while True:
        candidates = [line for line in lines if line["step"] in available]
        best = plan.config.best_step(candidates)
        step = max(available) if best is None else best
        if state is not None and step == in_memory:
            return state
        try:
            return checkpoints.restore(plan.shapes(step), step)
        except CorruptCheckpoint as error:
            available.remove(step)
            if not available:
                raise
            _LOGGER.warning("%s; the next best one is used", error)


def open_checkpoints(folder: Workdir, config: Config, metrics: MetricsFile) -> Checkpoints:
    """The checkpoints of a run; the best one is told from its metrics."""
    return Checkpoints(
        folder.checkpoints,
        keep=config.keep_checkpoints,
        best_step=lambda: config.best_step(metrics.of_split("validation")),
        last_line=metrics.sync,
    )
