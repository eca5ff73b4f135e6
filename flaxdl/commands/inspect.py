"""`inspect`: the layers of a model, from shapes alone."""

from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

from flaxdl import models
from flaxdl.report.inspect import inspect as inspect_layers
from flaxdl.report.inspect import layer_table
from flaxdl.spelling import did_you_mean


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
