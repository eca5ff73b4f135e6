"""`train`: trains a model from a config file and flags."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rich
import tyro

from flaxdl import run
from flaxdl.analysis.learning_rate import find_learning_rate
from flaxdl.analysis.profiling import profile
from flaxdl.analysis.trial import dry_run
from flaxdl.cli.config_file import ConfigArguments, config_file
from flaxdl.cli.printing import print_answers
from flaxdl.config import Config
from flaxdl.config_files import list_configs
from flaxdl.errors import UserError
from flaxdl.runs.config_json import differences, to_json
from flaxdl.runs.prediction import predict_with
from flaxdl.runs.setup import set_up
from flaxdl.runs.summary import summarize
from flaxdl.training.distributed.cluster import Distributed
from flaxdl.training.distributed.collectives import is_first
from flaxdl.training.tasks import LanguageModeling
from flaxdl.training.writers.console import describe

# Changed fields are hashed in this order, not that of Config, so that the same command finds its
# run in a later version too. New fields go to the end.
_HASH_ORDER = (
    *("model", "data", "transform", "task", "init", "optimizer", "freeze", "freeze_epochs"),
    *("batch_size", "accumulate_steps", "epochs", "train_fraction", "overfit_batches"),
    *("precision", "seed", "evaluate_every", "log_every", "selection", "keep_checkpoints"),
    *("max_bad_steps", "rewind"),
)


@dataclass(frozen=True)
class TrainArguments(ConfigArguments):
    """Train a model from a config file. The same command resumes an interrupted run."""

    workdir: Path | None = None
    """Folder of the run; by default runs/NAME, with a short hash of the changed fields, if any."""
    accept_changes: bool = False
    """Resume even if config, data or metrics differ from those of the run; each difference is
    logged."""
    find_learning_rate: bool = False
    """Plot loss against learning rate instead of training; frozen parameters stay frozen."""
    dry_run: bool = False
    """Build everything, train one step and evaluate once; only prepared data are saved."""
    wandb: str | None = None
    """Weights & Biases project to log metrics to as well; needs flaxdl[wandb]."""
    report: bool = True
    """Write report.html at the end."""
    profile: bool = False
    """Trace a few steps into WORKDIR/profile and print the ten most expensive operations, instead
    of training."""
    distributed: Distributed = Distributed()
    """How the processes of a run find each other, on a cluster that JAX does not recognize."""


def main(arguments: Sequence[str], program: str) -> None:
    """Train a model from a config file (--config), or list the config files (--list)."""
    if list(arguments) == ["--list"]:
        _list_configs()
        return
    found = config_file(arguments)
    if found is None:
        print(
            f"usage: {program} --config configs/NAME.py [--workdir DIR] [--FIELD VALUE ...]\n"
            f"       {program} --config configs/NAME.py --help    every field, explained\n"
            f"       {program} --list                             every config in configs/"
        )
        raise SystemExit(0 if {"-h", "--help"} & set(arguments) else 2)
    file, config = found
    default = TrainArguments(file=file, config=config)
    given = tyro.cli(TrainArguments, prog=program, args=arguments, default=default)
    command(given, given.workdir or _default_workdir(file, config, given.config))


def command(given: TrainArguments, workdir: Path) -> None:
    """Trains in a workdir, or does what a flag asks for instead."""
    given.distributed.connect()
    if given.find_learning_rate:
        curve = find_learning_rate(given.config)
        if is_first():
            found = f"{curve.steepest:.1e}; see {curve.draw(workdir)}"
            print(f"steepest descent at --optimizer.learning-rate {found}")
        return
    if given.dry_run:
        _dry_run(given.config)
        return
    if given.profile:
        found = profile(given.config, workdir)
        if is_first():
            rich.print(found.table())
            print(f"the whole trace is in {found.folder}")
        return
    result = run.train(
        given.config,
        workdir,
        accept_changes=given.accept_changes,
        report=given.report,
        wandb=given.wandb,
    )
    task = given.config.task
    if isinstance(task, LanguageModeling) and task.prompt is not None:
        written = predict_with(result.run, [task.prompt])
        if is_first():
            print_answers(written)


def _dry_run(config: Config) -> None:
    setup = set_up(config)
    if is_first():
        print(summarize(setup))
    for split, metrics in dry_run(setup).items():
        if is_first():
            print(f"{split:<10}  {describe(metrics)}")
    if is_first():
        print("dry run passed; nothing was saved")


def _list_configs() -> None:
    summaries = list_configs(Path("configs"))
    if not summaries:
        raise UserError(f"there is no config file in {Path('configs').absolute()}")
    for path, line in summaries.items():
        print(f"{path:<40}  {line}")


def _default_workdir(file: Path, original: Config, config: Config) -> Path:
    changes = differences(to_json(original), to_json(config))
    changes.sort(key=lambda line: _HASH_ORDER.index(re.split("[.:]", line)[0]))
    mark = hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8]
    return Path("runs") / (f"{file.stem}-{mark}" if changes else file.stem)
