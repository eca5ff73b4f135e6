"""Metrics on Weights & Biases, where somebody wants them there."""

import shutil
from pathlib import Path
from typing import Any

from flaxdl.errors import UserError
from flaxdl.training.writers.writer import Writer


class WeightsAndBiasesWriter(Writer):
    """Sends every number of a line to a project as `SPLIT/METRIC`, over the axis `step`.

    A run that goes on in the same folder goes on there too. Without network, `WANDB_MODE=offline`
    keeps everything in the folder until `wandb sync`.

    Args:
        project: its name.
        workdir: the run's folder; its name is the run's, and `wandb/` in it is where wandb writes.
        config: the run's config, as JSON.

    Raises:
        UserError: if wandb is not installed, or refuses, such as without a login.
    """

    def __init__(self, project: str, workdir: Path, *, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs Weights & Biases: pip install wandb") from None
        folder = workdir / "wandb"
        is_new = not folder.exists()
        try:
            self._run = wandb.init(
                project=project,
                name=workdir.resolve().name,
                dir=workdir,
                id=_last_id(workdir),
                resume="allow",
                config=config,
            )
        except wandb.Error as error:
            if is_new:
                shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"Weights & Biases cannot be used: {error}") from error
        # An axis of our own, since wandb's takes nothing earlier than what it has, such as the
        # steps that a resumed run measures again or the line of test, which is of the best step.
        self._run.define_metric("*", step_metric="step")

    def line(self, line: dict[str, Any]) -> None:
        """One point of each metric."""
        numbers = {
            f"{line['split']}/{name}": value
            for name, value in line.items()
            if name not in ("step", "split") and value is not None
        }
        self._run.log({"step": line["step"], **numbers})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


def _last_id(workdir: Path) -> str | None:
    """The id of the run that this folder began, which ends the names of wandb's own folders."""
    runs = sorted(workdir.glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime)
    return runs[-1].name.rpartition("-")[2] if runs else None
