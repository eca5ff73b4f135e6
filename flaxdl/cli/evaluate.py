"""`evaluate`: the metrics of a run's best checkpoint, or of a published model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flaxdl.config_files import load_config
from flaxdl.errors import UserError
from flaxdl.pretrained import evaluate_pretrained
from flaxdl.runs import evaluation
from flaxdl.training.writers.console import describe


def evaluate(arguments: Sequence[str], program: str) -> None:
    """Prints the metrics of a run on a split, or of a published model on a folder of images."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    workdir: Path | None = None,
    split: Literal["train", "validation", "test"] | None = None,
    config: str | None = None,
    weights: str | None = None,
    data: Path | None = None,
    batch_size: int | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Scores the best checkpoint of a run: --workdir; or a published model: --weights, --data.

    Args:
        workdir: The folder of the run.
        split: What to score the run on; by default the test split.
        config: The run's config file, where it uses classes of your own.
        weights: A published model, such as resnet50 or resnet50:IMAGENET1K_V2.
        data: A folder of images for it, with a folder for each of ImageNet's classes.
        batch_size: Images at a time, of a published model; by default 64.
        json_output: Print JSON.
    """
    of_run = (workdir, split, config)
    of_published = (weights, data, batch_size)
    if workdir is not None and of_published == (None, None, None):
        value = None if config is None else load_config(config)
        name = split or "test"
        metrics = evaluation.evaluate(workdir, name, config=value)
    elif weights is not None and data is not None and of_run == (None, None, None):
        size = 64 if batch_size is None else batch_size
        name, metrics = weights, evaluate_pretrained(weights, data, batch_size=size)
    else:
        raise UserError(
            "evaluate takes either --workdir, with --split and --config, "
            "or --weights and --data, with --batch-size"
        )
    print(json.dumps(metrics) if json_output else f"{name}  {describe(metrics)}")
