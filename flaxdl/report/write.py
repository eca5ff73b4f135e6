"""Writes reports from the files of a workdir and the predictions of its model."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from flaxdl.config import Config
from flaxdl.data import Splits
from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.outputs import writing
from flaxdl.filesystem.paths import local_path
from flaxdl.filesystem.remote_urls import is_url
from flaxdl.report import page, predictions
from flaxdl.report.build import run_page
from flaxdl.report.compare import ComparedRun, compare
from flaxdl.report.label_sets import LabelSets
from flaxdl.report.predictions import StoredPredictions
from flaxdl.runs.evaluation import load_transformed
from flaxdl.runs.plan import Plan
from flaxdl.runs.remote_workdir import reading_copy
from flaxdl.runs.restored import RestoredRun, read_plan, restore
from flaxdl.runs.tuned_task import with_stored_task
from flaxdl.runs.workdir import Workdir
from flaxdl.training.writers.metrics_file import MetricsFile
from flaxdl.training.writers.writer import Writer

_LOGGER = logging.getLogger(__name__)
_UNREADABLE = (
    "Predictions are missing because the checkpoint or the data cannot be read here. "
    "`python -m flaxdl report` adds them on a machine with both."
)
_NO_CHECKPOINT = "Predictions are missing because the run has no checkpoint."
_SEVERAL_PROCESSES = (
    "Predictions are missing because the run was trained by several processes; "
    "`python -m flaxdl report` adds them."
)


def write_report(
    workdirs: Sequence[str | Path], path: Path | None = None, *, config: Config | None = None
) -> Path:
    """Writes the report of a run, or of several runs side by side, as one HTML file.

    Predictions are computed and stored in the workdir if it does not contain them.

    Args:
        workdirs: working directories of the runs.
        path: file to write; for a single run, report.html in its workdir by default.
        config: config of the runs, needed only if it uses classes that are not part of flaxdl.

    Returns:
        The path of the file.

    Raises:
        UserError: if there is no run, if there are several runs but no path, or if the file cannot
            be written.
    """
    folders = [Workdir(reading_copy(workdir)) for workdir in workdirs]
    if not folders:
        raise UserError("a report needs the workdir of at least one run")
    if path is None:
        if len(folders) > 1:
            raise UserError(
                f"a report of {len(folders)} runs needs an output file; set --to FILE.html"
            )
        if is_url(workdirs[0]):
            raise UserError("the report of a run in a bucket needs an output file; set --to FILE")
        path = folders[0].report
    path = local_path(path)
    runs: list[ComparedRun] = []
    for folder in folders:
        plan = read_plan(folder.path, config)
        found, missing = _predictions(folder, plan, config)
        shown = run_page(folder, plan, found, missing)
        if shown.name in {other.shown.name for other in runs}:
            shown = replace(shown, name=f"{shown.name} ({len(runs) + 1})")
        runs.append(ComparedRun(folder, plan, found, shown))
    text = page.render([run.shown for run in runs], compare(runs) if len(runs) > 1 else None)
    with writing(path):
        _write(text, path)
    return path


class ReportWriter(Writer):
    """Writes the report at the end of a run; a failure is logged as a warning.

    The report is not rewritten if there are no new metrics. With several processes, it contains no
    predictions, since computing them would need all processes.

    Args:
        folder: workdir of the run.
        splits: transformed splits of the run.
    """

    def __init__(self, folder: Workdir, splits: Splits):
        self._folder = folder
        self._splits = splits
        self._is_due = not folder.report.exists()

    def line(self, line: dict[str, Any]) -> None:
        """Marks the report as outdated."""
        self._is_due = True

    def finish(self, run: RestoredRun) -> None:
        """Writes `report.html`."""
        if self._is_due:
            _report(self._folder, run, self._splits)


def _report(folder: Workdir, run: RestoredRun, splits: Splits) -> None:
    again = f"retry with `python -m flaxdl report --workdir {folder.path}`"
    found, missing = None, _SEVERAL_PROCESSES
    if jax.process_count() == 1:
        try:
            found, missing = predictions.compute(run, splits), None
            if found is not None:
                predictions.save(found, folder.predictions)
        except Exception as error:
            missing = _UNREADABLE
            _LOGGER.warning("the report has no predictions: %s; %s", _reason(error), again)
    try:
        _write(page.render([run_page(folder, run, found, missing)]), folder.report)
    except Exception as error:
        _LOGGER.warning("the report cannot be written: %s; %s", _reason(error), again)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _write(text: str, path: Path) -> None:
    """Writes a text file atomically, escaping names that are not valid UTF-8."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def _predictions(
    folder: Workdir, plan: Plan, config: Config | None
) -> tuple[StoredPredictions | None, str | None]:
    """Returns stored or newly computed predictions, or the reason why there are none."""
    metrics = MetricsFile(folder.metrics)
    if not metrics.lines:
        raise UserError(f"{folder.path} has no metrics yet")
    lines = metrics.of_split("validation")
    step = plan.config.best_step(lines) if lines else metrics.lines[-1]["step"]
    stored = predictions.load(folder.predictions)
    try:
        if stored is not None and stored.step == step:
            task = with_stored_task(plan, folder.tuned_task, stored.step).config.task
            if not isinstance(stored, LabelSets) or stored.has_thresholds_of(task):
                return stored, None
        if not folder.has_checkpoints:
            return None, _NO_CHECKPOINT
        run = restore(folder.path, config)
        found = predictions.compute(run, load_transformed(run, folder))
    except UserError as error:
        _LOGGER.warning("the report of %s has no predictions: %s", folder.path, error)
        return None, _UNREADABLE
    if found is not None:
        with contextlib.suppress(OSError):
            predictions.save(found, folder.predictions)
    return found, None
