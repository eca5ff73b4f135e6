"""The report of a run: what its workdir holds and its network answers, as one page to look at."""

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
from flaxdl.report import charts, page, predictions
from flaxdl.report.build import LAST_CHARTS, run_page, title_of
from flaxdl.report.predictions import Answers, Writings
from flaxdl.runs.evaluation import load_transformed
from flaxdl.runs.plan import Plan
from flaxdl.runs.restored import RestoredRun, read_plan, restore
from flaxdl.runs.workdir import Workdir
from flaxdl.training.writers.metrics_file import MetricsFile
from flaxdl.training.writers.writer import Writer

_LOGGER = logging.getLogger(__name__)
_NOT_READ = (
    "What the network answers is not shown: its checkpoint or its data cannot be read here. "
    "Where they can be, `python -m flaxdl report` adds it."
)
_NOT_ASKED = (
    "What the network answers is not shown, since several processes have trained it together; "
    "`python -m flaxdl report` adds it."
)


def write_report(
    workdirs: Sequence[str | Path], path: Path | None = None, *, config: Config | None = None
) -> Path:
    """Writes the report of a run, or of several side by side, as one HTML file.

    What the network answers is computed where the run has not kept it, and kept from then on.

    Args:
        workdirs: the folders of the runs.
        path: the file; by default report.html in the folder of the one run.
        config: the run's config, where config.json cannot bring it back.

    Returns:
        The file.

    Raises:
        UserError: if there is no run, there are several without a path, or the file cannot be
            written.
    """
    folders = [Workdir(workdir) for workdir in workdirs]
    if not folders:
        raise UserError("a report needs the workdir of at least one run")
    if path is None:
        if len(folders) > 1:
            raise UserError(f"the report of {len(folders)} runs needs a file; give --to FILE.html")
        path = folders[0].report
    path = local_path(path)
    runs = []
    for folder in folders:
        plan = read_plan(folder.path, config)
        found, missing = _answers(folder, plan, config)
        shown = run_page(folder, plan, found, missing)
        if shown.name in {other.name for other in runs}:
            shown = replace(shown, name=f"{shown.name} ({len(runs) + 1})")
        runs.append(shown)
    if len(folders) == 1:
        text = page.render(runs)
    else:
        text = page.render(runs, compared=_compared(folders, runs), differing=_differing(runs))
    with writing(path):
        _write(text, path)
    return path


class ReportWriter(Writer):
    """Writes the report of a run when it has finished; a failure is only warned of.

    It is not written again if nothing was measured since. If several processes have trained
    together the network is not asked, which would take all of them.

    Args:
        folder: where the run is kept.
        splits: its data, transformed.
    """

    def __init__(self, folder: Workdir, splits: Splits):
        self._folder = folder
        self._splits = splits
        self._is_due = not folder.report.exists()

    def line(self, line: dict[str, Any]) -> None:
        """Notes that there is something new to report."""
        self._is_due = True

    def finish(self, run: RestoredRun) -> None:
        """Writes `report.html`."""
        if self._is_due:
            _report(self._folder, run, self._splits)


def _report(folder: Workdir, run: RestoredRun, splits: Splits) -> None:
    again = f"`python -m flaxdl report --workdir {folder.path}` tries again"
    found, missing = None, _NOT_ASKED
    if jax.process_count() == 1:
        try:
            found, missing = predictions.answer(run, splits), None
            if found is not None:
                predictions.save(found, folder.predictions)
        except Exception as error:
            missing = _NOT_READ
            _LOGGER.warning("the report lacks answers: %s; %s", _reason(error), again)
    try:
        _write(page.render([run_page(folder, run, found, missing)]), folder.report)
    except Exception as error:
        _LOGGER.warning("the report cannot be written: %s; %s", _reason(error), again)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _write(text: str, path: Path) -> None:
    """Writes a file, whole or not at all; names that are not UTF-8 as their codes."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def _answers(
    folder: Workdir, plan: Plan, config: Config | None
) -> tuple[Answers | Writings | None, str | None]:
    """What the network answers, kept or computed; or why that is not to be had."""
    metrics = MetricsFile(folder.metrics)
    if not metrics.lines:
        raise UserError(f"{folder.path} has no metrics yet")
    lines = metrics.of_split("validation")
    step = plan.config.best_step(lines) if lines else metrics.lines[-1]["step"]
    kept = predictions.load(folder.predictions)
    if kept is not None and kept.step == step:
        return kept, None
    try:
        run = restore(folder.path, config)
        found = predictions.answer(run, load_transformed(run, folder))
    except UserError as error:
        _LOGGER.warning("the report of %s lacks answers: %s", folder.path, error)
        return None, _NOT_READ
    if found is not None:
        with contextlib.suppress(OSError):
            predictions.save(found, folder.predictions)
    return found, None


def _compared(folders: Sequence[Workdir], runs: Sequence[page.RunPage]) -> list[charts.Chart]:
    """A chart for each metric of validation (or training, where there is none), a line a run.

    Runs without a validation split are marked where they stand beside others.
    """
    lines, labels, splits = [], [], set()
    for folder, run in zip(folders, runs, strict=True):
        metrics = MetricsFile(folder.metrics)
        validation = metrics.of_split("validation")
        lines.append(validation or metrics.of_split("train"))
        labels.append(run.name if validation else f"{run.name} (training)")
        splits.add("validation" if validation else "training")
    if splits == {"training"}:
        labels = [run.name for run in runs]
    names = {name: None for found in lines for line in found for name in line}
    drawn = []
    for name in names:
        series = [
            charts.Series(
                label,
                [line["step"] for line in found if name in line],
                [line[name] for line in found if name in line],
            )
            for label, found in zip(labels, lines, strict=True)
        ]
        if name not in ("step", "split", *LAST_CHARTS):
            where = "training" if splits == {"training"} else "validation"
            title = f"{title_of(name)} on {where}"
            drawn.append(charts.line_chart(title, [one for one in series if one.x]))
    return drawn


def _differing(runs: Sequence[page.RunPage]) -> list[tuple[str, list[str]]]:
    """Results, and the settings that are not the same in all runs, with a value for each run."""
    results = [{**run.results, "parameters": f"{run.parameters:,}"} for run in runs]
    rows = []
    for facts, always in ((results, True), ([run.settings for run in runs], False)):
        for name in {name: None for fact in facts for name in fact}:
            values = [fact.get(name, "–") for fact in facts]
            if always or len(set(values)) > 1:
                rows.append((name, values))
    return rows
