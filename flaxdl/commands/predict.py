"""`predict`: what a run's best checkpoint makes of files or texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl import prediction
from flaxdl.commands.printing import print_answers
from flaxdl.config import load_config


def predict(arguments: Sequence[str], program: str) -> None:
    """Prints labels with probabilities for files or texts, or what the model writes for texts."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    items: tyro.conf.Positional[tuple[str, ...]],
    workdir: Path,
    sampling: Annotated[prediction.Sampling, tyro.conf.arg(name="")],
    config: str | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Classifies files or texts, or continues or rewrites texts, with a run's best checkpoint.

    Args:
        items: Image files, or texts, as the run was trained on.
        workdir: The folder of the run.
        sampling: How a language model continues a text.
        config: The run's config file, where it uses classes of your own.
        json_output: Print JSON, one object a line, with all probabilities.
    """
    if not items:
        raise ValueError("predict needs at least one file or text")
    value = None if config is None else load_config(config)
    found = prediction.predict(workdir, items, config=value, sampling=sampling)
    print_answers(found, as_json=json_output)
