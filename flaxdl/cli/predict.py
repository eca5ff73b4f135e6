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
from flaxdl.runs.items import Unreadable, read_items, summary
from flaxdl.runs.prediction import Sampling, predict_each
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.training.tasks import LanguageModeling, SequenceToSequence

_LOGGER = logging.getLogger(__name__)


def main(arguments: Sequence[str], program: str) -> None:
    """Predict labels for files or texts, or generate text, with a run's best checkpoint."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    items: tyro.conf.Positional[tuple[str, ...]],
    workdir: Path,
    sampling: Annotated[Sampling, tyro.conf.arg(name="")],
    from_file: str | None = None,
    to: Path | None = None,
    config: RunConfigFile = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Predict labels for files or texts, or generate text, with a run's best checkpoint.

    Items that cannot be read are listed at the end (exit code 2); all others are predicted.

    Args:
        items: Image files and folders of them, or texts, as in the run's data.
        workdir: Folder of the run.
        sampling: Sampling of a language model.
        from_file: File with a text or the name of an image file on each line; - for stdin.
        to: File (.csv or .jsonl) for the predictions, which are then not printed.
        json_output: Print JSON, one object per line, with all probabilities.
    """
    if json_output and to is not None:
        raise UserError("predict takes --json to print or --to to write a file, not both")
    path = None if to is None else output_file(to, SUFFIXES)
    if not items and from_file is None:
        raise UserError("predict needs at least one file or text, or --from-file")
    run = restore(workdir, load_run_config(config))
    _hint_at_files(items, run)
    given = [*items, *([] if from_file is None else read_items(from_file))]
    unreadable: list[Unreadable] = []
    total = 0

    def answers() -> Iterator[Answer]:
        nonlocal total
        for one in predict_each(run, given, sampling=sampling):
            total += 1
            if isinstance(one, Unreadable):
                unreadable.append(one)
            yield one

    if path is None:
        print_answers(answers(), as_json=json_output)
    else:
        write_answers(answers(), path, _columns(run))
        print(f"wrote {path}: {total - len(unreadable):,} predictions")
    if unreadable:
        raise UserError(summary(unreadable, total))


def _columns(run: RestoredRun) -> tuple[str, ...]:
    if isinstance(run.config.task, LanguageModeling | SequenceToSequence):
        return ("item", "text", "error")
    return ("item", "label", "probability", "error")


def _hint_at_files(items: Sequence[str], run: RestoredRun) -> None:
    if not run.transform.file_suffixes and (files := [x for x in items if os.path.isfile(x)]):
        _LOGGER.warning(
            "%s is taken as a text; to predict the lines of that file, use --from-file", files[0]
        )
