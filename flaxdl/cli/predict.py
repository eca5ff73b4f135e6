"""`predict`: predictions of a run's best checkpoint for files or texts."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl.cli.config_file import RunConfigFile, load_run_config
from flaxdl.cli.printing import SUFFIXES, Answer, print_answers, write_answers
from flaxdl.errors import UserError
from flaxdl.filesystem.outputs import output_file
from flaxdl.runs.forecasts import Forecast
from flaxdl.runs.items import SkippedItem, read_items, summary
from flaxdl.runs.prediction import BeamSearch, Sampling, predict_each
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.training.tasks import (
    Forecasting,
    LanguageModeling,
    MultiLabelClassification,
    Regression,
    SequenceToSequence,
)

_LOGGER = logging.getLogger(__name__)


def main(arguments: Sequence[str], program: str) -> None:
    """Predict labels or numbers, generate text or forecast series with a run's best checkpoint."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    items: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(help_behavior_hint="(optional with --from-file)"),
    ],
    workdir: Path,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")],
    beam_search: Annotated[BeamSearch, tyro.conf.arg(name="")],
    from_file: str | None = None,
    to: Path | None = None,
    config: RunConfigFile = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Predict labels or numbers, generate text or forecast series with a run's best checkpoint.

    Inputs that cannot be read are skipped and listed at the end (exit code 2).

    Args:
        items: Files, folders of files, their URLs, or texts, of the same kind as the run's data. A
            forecast continues the series in a table.
        workdir: Run directory.
        sampling: Sampling options for language models.
        beam_search: Beam search options for encoder-decoder models.
        from_file: File with one text or file name per line; - for standard input.
        to: Output file (.csv or .jsonl), instead of printing the predictions.
        json_output: Print JSON, one object per line, with all probabilities.
    """
    if json_output and to is not None:
        raise UserError("predict takes either --json (prints) or --to (writes a file), not both")
    path = None if to is None else output_file(to, SUFFIXES)
    if not items and from_file is None:
        raise UserError("predict needs at least one file or text, or --from-file")
    run = restore(workdir, load_run_config(config))
    _hint_at_files(items, run)
    given = [*items, *([] if from_file is None else read_items(from_file))]
    unreadable: list[SkippedItem] = []
    total = 0

    def answers() -> Iterator[Answer]:
        nonlocal total
        for one in predict_each(run, given, sampling=sampling, beam_search=beam_search):
            total += 1
            if isinstance(one, SkippedItem):
                unreadable.append(one)
            yield one

    if path is None:
        print_answers(answers(), as_json=json_output)
    elif isinstance(run.config.task, Forecasting) and path.suffix.lower() == ".csv":
        _write_forecast(list(answers()), path)
        print(f"wrote {path}")
    else:
        write_answers(answers(), path, _columns(run, path))
        print(f"wrote {path}: {total - len(unreadable):,} predictions")
    if unreadable:
        raise UserError(summary(unreadable, total))


def _write_forecast(found: Sequence[Answer], path: Path) -> None:
    """Writes one forecast as a table that continues its file."""
    if len(found) != 1:
        raise UserError(
            f"a .csv file continues one table, got {len(found)}; use --to FILE.jsonl for several"
        )
    (forecast,) = found
    if isinstance(forecast, SkippedItem):
        raise UserError(forecast.error)
    assert isinstance(forecast, Forecast)
    write_answers(found, path, tuple(forecast.rows()[0]))


def _columns(run: RestoredRun, path: Path) -> tuple[str, ...]:
    if isinstance(run.config.task, Regression):
        names = run.config.task.target_names
        if path.suffix.lower() == ".csv" and (taken := {"item", "error"} & {*names}):
            raise UserError(
                f"a .csv file has the columns item and error, and a target of the run has the name "
                f"{', '.join(sorted(taken))}; use --to FILE.jsonl"
            )
        return ("item", *names, "error")
    if isinstance(run.config.task, LanguageModeling | SequenceToSequence):
        return ("item", "text", "error")
    if isinstance(run.config.task, MultiLabelClassification):
        return ("item", "labels", "error")
    return ("item", "label", "probability", "error")


def _hint_at_files(items: Sequence[str], run: RestoredRun) -> None:
    if not run.transform.file_suffixes and (files := [x for x in items if os.path.isfile(x)]):
        _LOGGER.warning(
            "%s is treated as text; use --from-file to predict each line of the file", files[0]
        )
