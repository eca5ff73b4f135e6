"""Restoring of runs from their workdirs: the plan, and the state of the best checkpoint."""

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
from flaxdl.runs.fitted_task import with_fitted_fields
from flaxdl.runs.plan import Plan, resolve_model_sizes
from flaxdl.runs.remote_workdir import reading_copy
from flaxdl.runs.tuned_task import with_stored_task
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
    """Plan and trained state of a run: everything needed to use the trained model."""

    state: TrainState
    """Trained state, without the optimizer state; with EMA, its parameters are the averages."""

    @classmethod
    def of(cls, plan: Plan, state: TrainState) -> Self:
        """Creates a restored run from a plan and a state."""
        return cls.extended(plan, state=state.averaged.replace(optimizer_state=()))

    @property
    def model(self) -> nn.Module:
        """The model, with all sizes resolved from the data."""
        return self.config.model

    @cached_property
    def inference(self) -> Steps:
        """Step functions for evaluation and prediction.

        Parameters remain sharded: each device uses its own shard of them, and a sharded model is
        never gathered on one device.
        """
        return replace(self.steps, mesh=None)

    def inference_size(self, size: int) -> int:
        """Rounds a batch size up to a multiple of the mesh's data axis."""
        groups = self.mesh.shape["data"]
        return -(-size // groups) * groups

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Copies a batch [B, ...] to the devices; B must be a result of `inference_size`."""
        return put_for_inference(batch, self.mesh)

    @property
    def variables(self) -> dict[str, Any]:
        """Trained variables in float32, for `model.apply`."""
        return {"params": self.state.params, **self.state.model_state}


def read_plan(workdir: str | Path, config: Config | None = None) -> Plan:
    """Reads the plan of a run without loading its data or a checkpoint.

    A run that was trained on a device mesh is restored on the same mesh or, if the number of
    devices differs, on the nearest mesh for that number (see `MeshShape.fit_to`).

    Args:
        workdir: working directory of the run.
        config: config of the run, needed only if it uses classes that are not part of flaxdl.

    Raises:
        UserError: if there is no run, or if the recorded facts about its data do not match its
            config.
    """
    folder = Workdir(reading_copy(workdir))
    config = config or folder.config()
    data = folder.data()
    config = replace(config, task=with_fitted_fields(config.task, data.get("task", {})))
    transform = config.transform.restore(folder.path)
    classes = None if data["classes"] is None else tuple(data["classes"])
    warn_if_cpu_is_wrong()
    plan = Plan(
        config=resolve_model_sizes(config, classes, transform),
        transform=transform,
        classes=classes,
        examples={
            name: jax.ShapeDtypeStruct((1, *array["shape"]), array["dtype"])
            for name, array in data["example"].items()
        },
        steps_per_epoch=data["steps_per_epoch"],
        mesh=make_mesh(folder.mesh_shape().fit_to(len(jax.devices()))),
    )
    try:
        plan.check()
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"config.json in {folder.path} is inconsistent: data does not match config: {error}"
        ) from error
    return plan


def restore(workdir: str | Path, config: Config | None = None) -> RestoredRun:
    """Restores a run with its best checkpoint; the run may still be training.

    >>> run = flaxdl.restore("runs/digits_cnn")
    >>> logits = run.model.apply(run.variables, images)

    Args:
        workdir: working directory of the run.
        config: config of the run, needed only if it uses classes that are not part of flaxdl.

    Raises:
        UserError: if there is no run, or if it has no checkpoint yet.
        CorruptCheckpoint: if all checkpoints are corrupt.
    """
    folder = Workdir(reading_copy(workdir))
    plan = read_plan(folder.path, config)
    metrics = MetricsFile(folder.metrics)
    with closing(open_checkpoints(folder, plan.config, metrics)) as checkpoints:
        if not checkpoints.steps():
            raise UserError(f"{folder.path} has no checkpoint yet")
        state = restore_best(plan, checkpoints, metrics.of_split("validation"))
    return RestoredRun.of(with_stored_task(plan, folder.tuned_task, int(state.step)), state)


def restore_best(
    plan: Plan,
    checkpoints: Checkpoints,
    lines: Sequence[dict[str, Any]],
    *,
    state: TrainState | None = None,
) -> TrainState:
    """Restores the best state by validation metrics, or the latest state if there are none.

    A corrupt checkpoint is logged as a warning, and the next best one is used.

    Args:
        plan: plan of the run; its config determines the best state.
        checkpoints: checkpoints of the run.
        lines: lines of validation metrics.
        state: state in memory, used instead of reading its checkpoint.

    Raises:
        CorruptCheckpoint: if all checkpoints are corrupt.
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
            _LOGGER.warning("%s; using the next best checkpoint", error)


def open_checkpoints(folder: Workdir, config: Config, metrics: MetricsFile) -> Checkpoints:
    """Opens the checkpoints of a run; its metrics determine the best one."""
    return Checkpoints(
        folder.checkpoints,
        keep=config.keep_checkpoints,
        best_step=lambda: config.best_step(metrics.of_split("validation")),
        last_line=metrics.sync,
        is_shared=folder.is_shared,
    )
