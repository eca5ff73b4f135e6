"""`train`: a config file and its flags become a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flaxdl import prediction, run
from flaxdl.commands.printing import print_answers
from flaxdl.config import Config, differences, list_configs, load_config, to_json
from flaxdl.learning_rate import find_learning_rate
from flaxdl.training.tasks import LanguageModeling


@dataclass(frozen=True)
class TrainArguments:
    """Trains the network that a config file describes; the same line again goes on with it."""

    file: Annotated[str, tyro.conf.arg(name="config")]
    """The config file, such as configs/digits_cnn.py; its fields are the flags below."""
    config: Annotated[Config, tyro.conf.arg(name="")]
    workdir: Path | None = None
    """Where the run is kept; by default runs/NAME, and a mark of the changed fields behind it."""
    accept_changes: bool = False
    """Go on in a workdir that was begun with another config."""
    find_learning_rate: bool = False
    """Do not train, but try all learning rates for a few steps and draw the losses; what is frozen
    at first stays so."""


def train(arguments: Sequence[str], program: str) -> None:
    """Trains; without --config, says how, and with --list, what there is."""
    if list(arguments) == ["--list"]:
        _list_configs()
        return
    file = _value_of("--config", arguments)
    if file is None:
        print(
            f"usage: {program} --config configs/NAME.py [--workdir DIR] [--FIELD VALUE ...]\n"
            f"       {program} --config configs/NAME.py --help    every field, explained\n"
            f"       {program} --list                             every config in configs/"
        )
        raise SystemExit(0 if {"-h", "--help"} & set(arguments) else 2)
    config = load_config(file)
    given = tyro.cli(
        TrainArguments,
        prog=program,
        args=arguments,
        default=TrainArguments(file=file, config=config),
    )
    workdir = given.workdir or _default_workdir(file, config, given.config)
    if given.find_learning_rate:
        found = find_learning_rate(given.config)
        picture = found.draw(workdir)
        print(f"steepest descent at --optimizer.learning-rate {found.steepest:.1e}; see {picture}")
        return
    run.train(given.config, workdir, accept_changes=given.accept_changes)
    task = given.config.task
    if isinstance(task, LanguageModeling) and task.prompt is not None:
        print_answers(prediction.predict(workdir, [task.prompt], config=given.config))


def _list_configs() -> None:
    summaries = list_configs(Path("configs"))
    if not summaries:
        raise ValueError(f"there is no config file in {Path('configs').absolute()}")
    for path, summary in summaries.items():
        print(f"{path:<40}  {summary}")


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.removeprefix(f"{flag}=")
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
    return None


def _default_workdir(file: str, original: Config, config: Config) -> Path:
    changes = differences(to_json(original), to_json(config))
    mark = hashlib.sha256("\n".join(changes).encode()).hexdigest()[:8]
    name = Path(file).stem
    return Path("runs") / (f"{name}-{mark}" if changes else name)
