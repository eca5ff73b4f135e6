"""Writer for Weights & Biases."""

import shutil
from pathlib import Path
from typing import Any

from flaxdl.errors import UserError
from flaxdl.training.writers.writer import Writer


class WeightsAndBiasesWriter(Writer):
    """Logs each metric of a line to a W&B project as `SPLIT/METRIC`, over the axis `step`.

    A run that is resumed in the same workdir also resumes its W&B run. Without a network, set
    `WANDB_MODE=offline` to store all data in the workdir until `wandb sync` uploads it.

    Args:
        project: name of the W&B project.
        workdir: working directory of the run; its name becomes the name of the W&B run, and wandb
            writes to its subfolder `wandb`.
        config: config of the run, as JSON-compatible values.

    Raises:
        UserError: if wandb is not installed, or if it fails, for example without a login.
    """

    def __init__(self, project: str, workdir: Path, *, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise UserError("--wandb needs Weights & Biases: pip install 'flaxdl[wandb]'") from None
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
        # A custom axis, since wandb's own step must not decrease. The step of a line does decrease
        # when a resumed run repeats steps, and in the test line (step of the best checkpoint).
        self._run.define_metric("*", step_metric="step")

    def line(self, line: dict[str, Any]) -> None:
        """Logs a point for each metric."""
        numbers = {
            f"{line['split']}/{name}": value
            for name, value in line.items()
            if name not in ("step", "split") and value is not None
        }
        self._run.log({"step": line["step"], **numbers})

    def close(self) -> None:
        """Waits until everything is uploaded."""
        self._run.finish()


def _last_id(workdir: Path) -> str | None:
    """Returns the ID of the newest W&B run in a workdir, or None if there is no run."""
    runs = sorted(workdir.glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime)
    return runs[-1].name.rpartition("-")[2] if runs else None
