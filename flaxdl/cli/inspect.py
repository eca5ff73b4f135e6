"""`inspect`: the layers of a model and the memory of a training step."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro

from flaxdl import models
from flaxdl.analysis.layers import group_layers, layer_table
from flaxdl.analysis.layers import inspect as inspect_layers
from flaxdl.analysis.memory import memory_of, memory_table
from flaxdl.analysis.tpu_step import TPUCompiler
from flaxdl.analysis.tpu_tables import batch_table, cost_table, largest_batch_text, too_large_text
from flaxdl.backend.tpu_compiler import tpu_devices
from flaxdl.checks import did_you_mean
from flaxdl.cli.config_file import ConfigArguments, config_file
from flaxdl.cli.printing import print_table
from flaxdl.cli.renamed import check_flags, check_model
from flaxdl.config import Config
from flaxdl.errors import UserError
from flaxdl.models.generation import EncoderDecoder
from flaxdl.runs.setup import set_up


@dataclass(frozen=True)
class InspectArguments(ConfigArguments):
    """Print the layers of a config's model, or the memory required by a training step."""

    memory: bool = False
    """Compile the training step for this machine's devices and print the memory it requires."""
    topology: str | None = None
    """With --memory: compile for a TPU instead, such as v5e:1x1 (Colab) or v5e:2x4; no TPU is
    needed. Also print FLOPs, memory traffic, collectives and the largest batch size that fits."""
    depth: int | None = None
    """Depth to group layers by: 1 for layer1, 2 for layer1.0. By default, every layer has a row."""


def main(arguments: Sequence[str], program: str) -> None:
    """Print a summary of a model: output shapes, parameters and FLOPs of each layer."""
    found = config_file(arguments)
    if found is not None:
        _inspect_config(*found, arguments, program)
        return
    name, *rest = arguments or ["--help"]
    public = {name: getattr(models, name) for name in models.__all__}
    kinds = {n: kind for n, kind in public.items() if isinstance(kind, type(nn.Module))}
    if name in ("-h", "--help"):
        print(f"usage: {program} MODEL [--shape 224 224 3] [--depth 1] [--FIELD VALUE ...]")
        print(f"       {program} --config CONFIG [--depth 1] [--FIELD VALUE ...]")
        print(f"       {program} --config CONFIG --memory [--topology v5e:1x1] [--FIELD VALUE ...]")
        print("CONFIG is a name, such as digits_cnn, or a Python file.")
        print(f"MODEL is one of {', '.join(kinds)}")
        return
    if name not in kinds:
        check_model(name)
        raise UserError(f"there is no model {name!r}{did_you_mean(name, kinds)}")

    check_flags(rest, kinds[name])

    def command(
        model: Annotated[kinds[name], tyro.conf.arg(name="")],  # type: ignore[valid-type]
        shape: tuple[int, ...] | None = None,
        depth: int | None = None,
    ) -> None:
        """Print a summary of a model, from shapes alone; nothing is computed.

        Args:
            model: Model to inspect.
            shape: Shape of one example; by default, 224 224 3 for images and 128 for tokens.
            depth: Depth to group layers by: 1 for layer1, 2 for layer1.0. By default, every layer
                has a row.
        """
        takes_tokens = hasattr(model, "vocab_size")
        example = shape or ((128,) if takes_tokens else (224, 224, 3))
        dtype = jnp.int32 if takes_tokens else jnp.float32
        inputs = jax.ShapeDtypeStruct((1, *example), dtype)
        keywords = {"targets": inputs} if isinstance(model, EncoderDecoder) else {}
        _print_layers(model, inputs, keywords, depth)

    tyro.cli(command, prog=f"{program} {name}", args=rest)


def _inspect_config(file: Path, config: Config, arguments: Sequence[str], program: str) -> None:
    default = InspectArguments(file=file, config=config)
    given = tyro.cli(InspectArguments, prog=program, args=arguments, default=default)
    if given.topology is not None:
        if not given.memory:
            raise UserError(f"--topology {given.topology} needs --memory")
        _inspect_on_tpu(given.config, given.topology)
        return
    setup = set_up(given.config)
    if given.memory:
        print_table(memory_table(setup, memory_of(setup)))
        return
    examples: Any = setup.examples  # abstract arrays; the task handles them like arrays
    inputs, keywords = setup.config.task.model_arguments(examples)
    _print_layers(setup.config.model, inputs, keywords, given.depth)


def _inspect_on_tpu(config: Config, topology: str) -> None:
    compiler = TPUCompiler(set_up(config, devices=tpu_devices(topology)))
    print(
        f"{compiler.setup.mesh.size} x {compiler.device.device_kind} ({topology}), "
        f"batch size {config.batch_size}, jax {metadata.version('jax')}, libtpu "
        f"{metadata.version('libtpu')}; compiling three batch sizes takes minutes",
        flush=True,
    )
    step = compiler.compile(config.batch_size)
    if step.fits:
        print_table(memory_table(compiler.setup, step.memory))
        print_table(cost_table(step))
    else:
        print(f"does not fit: {step.message}", flush=True)
    found = compiler.find_largest_batch(step)
    print_table(batch_table(found))
    if not step.fits:
        raise UserError(too_large_text(compiler, step, found))
    print(largest_batch_text(compiler, found))


def _print_layers(
    model: nn.Module, inputs: Any, keywords: dict[str, Any], depth: int | None
) -> None:
    rows = inspect_layers(model, inputs, **keywords)
    rows = rows if depth is None else group_layers(rows, depth)
    print_table(layer_table(rows, inputs.shape[1:]))
