"""`evaluate`: metrics of a run's best checkpoint, or of a pretrained model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flaxdl.cli.config_file import RunConfigFile, load_run_config
from flaxdl.errors import UserError
from flaxdl.pretrained import evaluate_pretrained
from flaxdl.runs import evaluation
from flaxdl.training.writers.console import describe


def main(arguments: Sequence[str], program: str) -> None:
    """Evaluate a run on a split, or a pretrained model on a folder of images."""
    tyro.cli(command, prog=program, args=arguments)


def command(
    workdir: Path | None = None,
    split: Literal["train", "validation", "test"] | None = None,
    config: RunConfigFile = None,
    weights: str | None = None,
    data: Path | None = None,
    batch_size: int | None = None,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Evaluate the best checkpoint of a run (--workdir) or a pretrained model (--weights, --data).

    Args:
        workdir: Run directory.
        split: Split of the run's data; by default, the test split.
        weights: Pretrained model, such as resnet50 or resnet50:IMAGENET1K_V2.
        data: Folder of images for a pretrained model, with one subfolder per ImageNet class.
        batch_size: Batch size for a pretrained model; by default, 64.
        json_output: Print JSON.
    """
    of_run = (workdir, split, config)
    of_pretrained = (weights, data, batch_size)
    if workdir is not None and of_pretrained == (None, None, None):
        name = split or "test"
        metrics = evaluation.evaluate(workdir, name, config=load_run_config(config))
    elif weights is not None and data is not None and of_run == (None, None, None):
        size = 64 if batch_size is None else batch_size
        name, metrics = weights, evaluate_pretrained(weights, data, batch_size=size)
    else:
        raise UserError(
            "evaluate takes either --workdir, with --split and --config, "
            "or --weights and --data, with --batch-size"
        )
    print(json.dumps(metrics) if json_output else f"{name}  {describe(metrics)}")
