"""`inspect`: the layers of a model, and the memory that a training step takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from flaxdl import models
from flaxdl.analysis.layers import inspect as inspect_layers
from flaxdl.analysis.layers import layer_table
from flaxdl.analysis.memory import memory_of, memory_table
from flaxdl.checks import did_you_mean
from flaxdl.cli.config_file import ConfigArguments, config_file
from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.runs.setup import set_up


@dataclass(frozen=True)
class InspectArguments(ConfigArguments):
    """Print the layers of a config's model, or the memory that a training step takes."""

    memory: bool = False
    """Compile the training step for this machine's devices and print the memory it takes."""


def main(arguments: Sequence[str], program: str) -> None:
    """Print the layers of a model, with their shapes, parameters and costs."""
    found = config_file(arguments)
    if found is not None:
        _inspect_config(*found, arguments, program)
        return
    name, *rest = arguments or ["--help"]
    public = {name: getattr(models, name) for name in models.__all__}
    kinds = {n: kind for n, kind in public.items() if isinstance(kind, type(nn.Module))}
    if name in ("-h", "--help"):
        print(f"usage: {program} MODEL [--shape 224 224 3] [--FIELD VALUE ...]")
        print(f"       {program} --config configs/NAME.py [--memory] [--FIELD VALUE ...]")
        print(f"MODEL is one of {', '.join(kinds)}")
        return
    if name not in kinds:
        raise UserError(f"there is no model {name!r}{did_you_mean(name, kinds)}")

    def command(
        model: Annotated[kinds[name], tyro.conf.arg(name="")],  # type: ignore[valid-type]
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Print the layers of a model; nothing is computed but shapes.

        Args:
            model: Model to inspect.
            shape: Shape of one example; by default 224 224 3 for images, 128 for tokens.
        """
        takes_tokens = hasattr(model, "vocab_size")
        example = shape or ((128,) if takes_tokens else (224, 224, 3))
        dtype = jnp.int32 if takes_tokens else jnp.float32
        inputs = jax.ShapeDtypeStruct((1, *example), dtype)
        keywords = {"targets": inputs} if isinstance(model, models.Seq2SeqTransformer) else {}
        Console().print(layer_table(inspect_layers(model, inputs, **keywords)))

    tyro.cli(command, prog=f"{program} {name}", args=rest)


def _inspect_config(file: Path, config: Config, arguments: Sequence[str], program: str) -> None:
    default = InspectArguments(file=file, config=config)
    given = tyro.cli(InspectArguments, prog=program, args=arguments, default=default)
    setup = set_up(given.config)
    if given.memory:
        Console().print(memory_table(setup, memory_of(setup)))
        return
    examples: Any = setup.examples  # shapes, of which a task takes its parts as of arrays
    inputs, keywords = setup.config.task.model_arguments(examples)
    Console().print(layer_table(inspect_layers(setup.config.model, inputs, **keywords)))
