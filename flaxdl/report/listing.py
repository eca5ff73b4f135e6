"""The runs in a folder: how far they are, what they reached, and what differs between them."""

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
from flaxdl.training.overfitting import is_learned
from flaxdl.training.writers.metrics_file import MetricsFile

_NO_SCORES = ("step", "split", "skipped_batches", *LAST_CHARTS)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What is known of a run without its data, its checkpoints and its classes."""

    path: Path
    """The workdir."""
    updated: datetime
    """When its last line of metrics was written, in local time."""
    state: str
    """`finished`, `finished early`, `running`, `stopped` or `unreadable`."""
    step: int = 0
    """The step of its newest line of metrics or checkpoint."""
    total_steps: int = 0
    """The length of the run."""
    split: str | None = None
    """The split of the scores; None without any."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """The metrics of the best checkpoint; None for what is not finite."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The config, a text for each field."""
    differing: Mapping[str, str] = field(default_factory=dict)
    """Those of the settings that other runs of the same model and kind of data have otherwise."""
    fault: str | None = None
    """Why the run cannot be read."""


def list_runs(folder: str | Path = "runs") -> list[RunSummary]:
    """Finds the runs in a folder, at any depth; those that were written to last come first.

    Raises:
        UserError: if there is no such folder, or no run in it.
    """
    folder = local_path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} with runs; name another one")
    runs = [_summary(Workdir(path)) for path in _workdirs(folder)]
    if not runs:
        raise UserError(f"there is no run in {folder}")
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
    """Returns whether config.json is that of a run; models of Hugging Face have such a file too."""
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
    """The config, where it needs no classes of the user's own."""
    try:
        return folder.config()
    except UserError:
        return None


def _scored(metrics: MetricsFile, config: Config | None) -> Mapping[str, Any]:
    """The line of metrics that counts: of the test, the best validation, or the last training."""
    validation = metrics.of_split("validation")
    if test := metrics.of_split("test"):
        return test[-1]
    if validation and config is not None:
        best = config.best_step(validation)
        return next(line for line in validation if line["step"] == best)
    lines = validation or metrics.lines
    return lines[-1] if lines else {}


def _is_over(metrics: MetricsFile, record: Mapping[str, Any], config: Config | None) -> bool:
    """Returns whether a run has ended before its last step."""
    batches = record["overfit_batches"]
    if batches is not None and is_learned(metrics.of_split("train"), batches):
        return True
    validation = metrics.of_split("validation")
    return bool(metrics.of_split("test")) or (
        config is not None and config.selection.is_over(validation, config.task)
    )


def _compared(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs with those of their settings that differ among them."""
    names = {name for run in runs for name in run.settings}
    differing = {name for name in names if len({run.settings.get(name) for run in runs}) > 1}
    return [
        replace(run, differing={n: value for n, value in run.settings.items() if n in differing})
        for run in runs
    ]


def to_record(run: RunSummary) -> dict[str, Any]:
    """A run as a JSON object."""
    record = vars(run) | {"path": str(run.path), "updated": run.updated.isoformat(" ", "seconds")}
    del record["settings"]
    return json.loads(json.dumps(record))
