"""The command line: `python -m flaxdl train | evaluate | predict | inspect`."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from flaxdl import models, prediction, run
from flaxdl.config import Config, differences, list_configs, load_config, to_json
from flaxdl.report.inspect import inspect as inspect_layers
from flaxdl.report.inspect import layer_table
from flaxdl.spelling import did_you_mean
from flaxdl.training.console import describe
from flaxdl.training.interruption import Interrupted
from flaxdl.training.loop import Diverged
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


def train(arguments: Sequence[str], program: str) -> None:
    """Trains; without --config, says how, and with --list, what there is."""
    if list(arguments) == ["--list"]:
        summaries = list_configs(Path("configs"))
        if not summaries:
            raise ValueError(f"there is no config file in {Path('configs').absolute()}")
        for path, summary in summaries.items():
            print(f"{path:<32}  {summary}")
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
    run.train(given.config, workdir, accept_changes=given.accept_changes)
    task = given.config.task
    if isinstance(task, LanguageModeling) and task.prompt is not None:
        _print(prediction.predict(workdir, [task.prompt], config=given.config))


def evaluate(arguments: Sequence[str], program: str) -> None:
    """Prints the metrics of a run's best checkpoint on a split."""

    def command(
        workdir: Path,
        split: Literal["train", "validation", "test"] = "test",
        config: str | None = None,
        json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
    ) -> None:
        """Scores the best checkpoint of a run.

        Args:
            workdir: The folder of the run.
            split: What to score it on.
            config: The run's config file, where it uses classes of your own.
            json_output: Print JSON.
        """
        value = None if config is None else load_config(config)
        metrics = run.evaluate(workdir, split, config=value)
        print(json.dumps(metrics) if json_output else f"{split}  {describe(metrics)}")

    tyro.cli(command, prog=program, args=arguments)


def predict(arguments: Sequence[str], program: str) -> None:
    """Prints labels with probabilities for files or texts, or what the model writes for texts."""

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
        _print(found, as_json=json_output)

    tyro.cli(command, prog=program, args=arguments)


def _print(
    found: Sequence[prediction.Prediction | prediction.Writing], *, as_json: bool = False
) -> None:
    """Prints texts as they are, and labels as a table."""
    table = Table("input", "label", "probability", "otherwise")
    for one in found:
        if as_json:
            label = {"label": one.label} if isinstance(one, prediction.Prediction) else {}
            print(json.dumps(label | dataclasses.asdict(one)))
        elif isinstance(one, prediction.Writing):
            print(one.text)
        else:
            (label, probability), *others = one.probabilities.items()
            rest = ", ".join(f"{name} {share:.1%}" for name, share in others[:2])
            table.add_row(one.item, label, f"{probability:.1%}", rest)
    if table.row_count:
        Console().print(table)


def inspect(arguments: Sequence[str], program: str) -> None:
    """Prints the layers of a model, with their shapes, parameters and costs."""
    name, *rest = arguments or ["--help"]
    public = {name: getattr(models, name) for name in models.__all__}
    kinds = {n: kind for n, kind in public.items() if isinstance(kind, type(nn.Module))}
    if name in ("-h", "--help"):
        print(f"usage: {program} MODEL [--shape 224 224 3] [--FIELD VALUE ...]")
        print(f"MODEL is one of {', '.join(kinds)}")
        return
    if name not in kinds:
        raise ValueError(f"there is no model {name!r}{did_you_mean(name, kinds)}")

    def command(
        model: Annotated[kinds[name], tyro.conf.arg(name="")],  # type: ignore[valid-type]
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Counts from shapes alone; nothing is computed.

        Args:
            model: The model.
            shape: Shape of one example; 224 224 3 for images and 128 for tokens, if not given.
        """
        takes_tokens = hasattr(model, "vocab_size")
        example = shape or ((128,) if takes_tokens else (224, 224, 3))
        dtype = jnp.int32 if takes_tokens else jnp.float32
        inputs = jax.ShapeDtypeStruct((1, *example), dtype)
        keywords = {"targets": inputs} if isinstance(model, models.Seq2SeqTransformer) else {}
        Console().print(layer_table(inspect_layers(model, inputs, **keywords)))

    tyro.cli(command, prog=f"{program} {name}", args=rest)


COMMANDS: dict[str, Callable[[Sequence[str], str], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect,
}


def main(arguments: Sequence[str], program: str = "python -m flaxdl") -> int:
    """Runs a command and returns its exit code.

    0 done, 1 our fault (with a traceback), 2 the user's mistake, 3 the numbers diverged, 130 and
    143 interrupted or terminated, after saving.
    """
    name, *rest = arguments or ["--help"]
    if name not in COMMANDS:
        print(f"usage: {program} {{{','.join(COMMANDS)}}} ...")
        if name in ("-h", "--help"):
            return 0
        return _complain(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}", 2)
    try:
        COMMANDS[name](rest, f"{program} {name}" if program.startswith("python") else program)
    except Interrupted as interrupted:
        return _complain(str(interrupted), interrupted.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Diverged as diverged:
        return _complain(str(diverged), 3)
    except ValueError as error:
        if not _raised_by_us(error.__traceback__):
            raise
        return _complain(str(error), 2)
    return 0


def _complain(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def _raised_by_us(traceback: TracebackType | None) -> bool:
    """Whether a line of flaxdl raised it, as it does for bad input, or a library it called."""
    module = ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module.split(".")[0] == "flaxdl" or module == "__main__"


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
