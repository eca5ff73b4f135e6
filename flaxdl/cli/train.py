"""`train`: a config file and its flags become a run."""

import hashlib
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


@dataclass(frozen=True)
class TrainArguments(ConfigArguments):
    """Trains the network that a config file describes; the same line again goes on with it."""

    workdir: Path | None = None
    """Where the run is kept; by default runs/NAME, and a mark of the changed fields behind it."""
    accept_changes: bool = False
    """Resume although config, data or metrics are not those that the run began with; each
    difference is logged."""
    find_learning_rate: bool = False
    """Do not train, but try all learning rates for a few steps and draw the losses; what is frozen
    at first stays so."""
    dry_run: bool = False
    """Build everything, train one step, evaluate once and say whether it works; nothing is saved
    but prepared data."""
    wandb: str | None = None
    """Project of Weights & Biases that gets the metrics as well, by flaxdl[wandb]."""
    report: bool = True
    """Write report.html at the end, a page to look at."""
    profile: bool = False
    """Do not train, but trace a few steps into WORKDIR/profile and print the ten most expensive
    operations."""
    distributed: Distributed = Distributed()
    """Where the processes of a run find each other, on a cluster that JAX does not know."""


def train(arguments: Sequence[str], program: str) -> None:
    """Trains; without --config, says how, and with --list, what there is."""
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
    given = tyro.cli(
        TrainArguments,
        prog=program,
        args=arguments,
        default=TrainArguments(file=file, config=config),
    )
    workdir = given.workdir or _default_workdir(file, config, given.config)
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
    mark = hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8]
    return Path("runs") / (f"{file.stem}-{mark}" if changes else file.stem)
