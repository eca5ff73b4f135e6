"""Lists the runs in a folder with their progress, scores and differing settings."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path
from flaxdl.report.build import LAST_CHARTS, settings
from flaxdl.runs.workdir import Workdir
from flaxdl.training.checkpoints.folder import CheckpointFolder
from flaxdl.training.overfitting import has_overfit
from flaxdl.training.writers.metrics_file import MetricsFile

_NO_SCORES = ("step", "split", "skipped_batches", *LAST_CHARTS)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Summary of a run, read without its data, checkpoints or custom classes."""

    path: Path
    """Working directory of the run."""
    updated: datetime
    """Local time of the last line of metrics."""
    state: str
    """`finished`, `finished early`, `running`, `stopped` or `unreadable`."""
    step: int = 0
    """Step of the newest line of metrics or checkpoint."""
    total_steps: int = 0
    """Number of steps of the complete run."""
    split: str | None = None
    """Split of the scores; None without scores."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Metrics of the best checkpoint; None for non-finite values."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Values of the config as text, by field."""
    differing: Mapping[str, str] = field(default_factory=dict)
    """Settings that differ between runs with the same model and data source."""
    fault: str | None = None
    """Reason why the run cannot be read."""


def list_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """Finds the runs in a folder, at any depth; most recently updated first.

    Raises:
        UserError: if the folder does not exist or has no runs.
    """
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; pass the folder of your runs")
    runs = [_summary(Workdir(path)) for path in _workdirs(folder)]
    if not runs:
        raise UserError(f"there are no runs in {folder}")
    groups = defaultdict(list)
    for run in runs:
        groups[run.settings.get("model"), run.settings.get("data")].append(run)
    compared = [run for group in groups.values() for run in _compared(group)]
    return sorted(compared, key=lambda run: run.updated, reverse=True)


def _workdirs(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        if "config.json" in files and ("metrics.jsonl" in files or _is_config(Path(place))):
            yield Path(place)
            folders.clear()
        folders.sort()


def _is_config(folder: Path) -> bool:
    """Returns True if config.json was written by a run; Hugging Face models also have one."""
    try:
        return bool(Workdir(folder).config_record())
    except UserError:
        return False


def _summary(folder: Workdir) -> RunSummary:
    newest = folder.metrics if folder.metrics.exists() else folder.path / "config.json"
    updated = datetime.fromtimestamp(newest.stat().st_mtime)
    try:
        return _read(folder, updated)
    except (ValueError, OSError, KeyError, TypeError) as error:
        fault = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return RunSummary(path=folder.path, updated=updated, state="unreadable", fault=fault)


def _read(folder: Workdir, updated: datetime) -> RunSummary:
    record, metrics = folder.config_record(), MetricsFile(folder.metrics, writes=False)
    checkpoints = CheckpointFolder(folder.checkpoints).steps() if folder.has_checkpoints else []
    step = max([0, *checkpoints, *(line["step"] for line in metrics.lines)])
    total_steps = max(round(record["epochs"] * folder.data()["steps_per_epoch"]), 1)
    config = _config(folder)
    if folder.is_in_use:
        state = "running"
    elif step >= total_steps:
        state = "finished"
    else:
        state = "finished early" if _is_over(metrics, record, config) else "stopped"
    line = _scored(metrics, config)
    return RunSummary(
        path=folder.path,
        updated=updated,
        state=state,
        step=step,
        total_steps=total_steps,
        split=line.get("split"),
        scores={name: value for name, value in line.items() if name not in _NO_SCORES},
        settings=settings(record),
    )


def _config(folder: Workdir) -> Config | None:
    """Returns the config, or None if it needs custom classes."""
    try:
        return folder.config()
    except UserError:
        return None


def _scored(metrics: MetricsFile, config: Config | None) -> Mapping[str, Any]:
    """Returns the test line or, without one, the best validation line or the last line."""
    validation = metrics.of_split("validation")
    if test := metrics.of_split("test"):
        return test[-1]
    if validation and config is not None:
        best = config.best_step(validation)
        return next(line for line in validation if line["step"] == best)
    lines = validation or metrics.lines
    return lines[-1] if lines else {}


def _is_over(metrics: MetricsFile, record: Mapping[str, Any], config: Config | None) -> bool:
    """Returns True if a run ended before its last step."""
    batches = record["overfit_batches"]
    if batches is not None and has_overfit(metrics.of_split("train"), batches):
        return True
    validation = metrics.of_split("validation")
    return bool(metrics.of_split("test")) or (
        config is not None and config.selection.should_stop(validation, config.task)
    )


def _compared(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Returns copies of the runs with `differing` set to the settings that differ between them."""
    names = {name for run in runs for name in run.settings}
    differing = {name for name in names if len({run.settings.get(name) for run in runs}) > 1}
    return [
        replace(run, differing={n: value for n, value in run.settings.items() if n in differing})
        for run in runs
    ]


def to_record(run: RunSummary) -> dict[str, Any]:
    """Converts a run to a dict of JSON-compatible values, without `settings`."""
    record = vars(run) | {"path": str(run.path), "updated": run.updated.isoformat(" ", "seconds")}
    del record["settings"]
    return json.loads(json.dumps(record))
