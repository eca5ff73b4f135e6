"""`train`: trains a model from a config file; flags override its fields."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from flaxdl import run
from flaxdl.analysis.learning_rate import find_learning_rate
from flaxdl.analysis.profiling import profile
from flaxdl.analysis.trial import dry_run
from flaxdl.cli.config_file import ConfigArguments, config_file
from flaxdl.cli.configs import print_configs
from flaxdl.cli.printing import print_answers, print_table
from flaxdl.config import Config
from flaxdl.filesystem.paths import local_path
from flaxdl.runs.config_json import differences, to_json
from flaxdl.runs.prediction import predict_with_run
from flaxdl.runs.setup import set_up
from flaxdl.runs.summary import summarize
from flaxdl.training.distributed.cluster import Distributed
from flaxdl.training.distributed.collectives import is_first
from flaxdl.training.tasks import LanguageModeling
from flaxdl.training.writers.console import describe

# Overridden fields are hashed in this order rather than in the order of Config, so that the same
# command finds its run in later versions too. Append new fields at the end.
_HASH_ORDER = (
    *("model", "data", "transform", "task", "init", "optimizer", "freeze", "freeze_epochs"),
    *("batch_size", "accumulate_steps", "epochs", "train_fraction", "overfit_batches"),
    *("precision", "seed", "evaluate_every", "log_every", "selection", "keep_checkpoints"),
    *("max_bad_steps", "spike_recovery", "repeated_augmentation", "ema", "balanced_sampling"),
)


@dataclass(frozen=True)
class TrainArguments(ConfigArguments):
    """Train a model from a config file. The same command resumes an interrupted run.

    Data is loaded in the background; worker processes (num_workers in PyTorch) are started
    automatically if there are many files to decode.
    """

    workdir: Path | None = None
    """Run directory; by default, runs/NAME, with a short hash of the overridden fields, if any."""
    accept_changes: bool = False
    """Resume even if config, data or metrics differ from those the run started with; each
    difference is logged."""
    find_learning_rate: bool = False
    """Run a learning-rate range test instead of training: plot loss against learning rate. Frozen
    parameters remain frozen."""
    dry_run: bool = False
    """Set up the run, train one step and evaluate once instead of training; no files are saved
    except prepared data."""
    wandb: str | None = None
    """Weights & Biases project that metrics are also logged to; needs flaxdl[wandb]."""
    report: bool = True
    """Write report.html at the end of the run."""
    profile: bool = False
    """Profile a few training steps instead of training: write a trace to WORKDIR/profile and print
    the most expensive modules."""
    distributed: Distributed = Distributed()
    """Connection of processes, for clusters that JAX does not detect automatically."""


def main(arguments: Sequence[str], program: str) -> None:
    """Train a model from a config file (--config), or list the configs (--list)."""
    if list(arguments) == ["--list"]:
        print_configs()
        return
    found = config_file(arguments)
    if found is None:
        print(
            f"usage: {program} --config CONFIG [--workdir DIR] [--FIELD VALUE ...]\n"
            f"       {program} --config CONFIG --help    all fields of the config\n"
            f"       {program} --list                    all available configs\n"
            "CONFIG is a name, such as digits_cnn, or a Python file.\n"
            "To write a file of your own: flaxdl configs digits_cnn > mine.py"
        )
        raise SystemExit(0 if {"-h", "--help"} & set(arguments) else 2)
    file, config = found
    default = TrainArguments(file=file, config=config)
    given = tyro.cli(TrainArguments, prog=program, args=arguments, default=default)
    command(given, given.workdir or _default_workdir(file, config, given.config))


def command(given: TrainArguments, workdir: Path) -> None:
    """Trains in a run directory, or runs the range test, dry run or profile that a flag selects."""
    if given.find_learning_rate or given.profile:
        local_path(workdir)  # raises an error for a URL before the work
    given.distributed.connect()
    if given.find_learning_rate:
        curve = find_learning_rate(given.config)
        if is_first():
            print(f"--optimizer.learning-rate {curve.steepest:.1e}  (steepest descent)")
            print(f"--optimizer.learning-rate {curve.tenth_of_minimum:.1e}  (minimum / 10)")
            print(f"plot: {curve.draw(workdir)}")
        return
    if given.dry_run:
        _dry_run(given.config)
        return
    if given.profile:
        found = profile(given.config, workdir)
        if is_first():
            print_table(found.table())
            print(f"trace: {found.folder}")
            print(f"To open it: tensorboard --logdir {found.folder}")
            print("(after pip install tensorboard xprof), or load its .trace.json.gz in")
            print("https://ui.perfetto.dev")
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
        written = predict_with_run(result.run, [task.prompt])
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


def _default_workdir(file: Path, original: Config, config: Config) -> Path:
    changes = differences(to_json(original), to_json(config))
    changes.sort(key=lambda line: _HASH_ORDER.index(re.split("[.:]", line)[0]))
    mark = hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8]
    return Path("runs") / (f"{file.stem}-{mark}" if changes else file.stem)
