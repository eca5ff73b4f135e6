"""The training step compiled ahead of time, and its cost according to the compiler."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from flaxdl.training.distributed.mesh import batch_sharding
from flaxdl.training.distributed.placement import Placement, shardings
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps

_COLLECTIVE = re.compile(
    r" = (?P<shapes>.+?) (?P<kind>all-reduce|reduce-scatter|all-gather|collective-permute|"
    r"collective-broadcast|ragged-all-to-all|all-to-all)(?P<part>-start|-done)?\("
    r"(?:.*? channel_id=(?P<channel>\d+))?"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """Collective operations of one kind in a compiled program."""

    count: int
    """Number in the text of the program; one in a loop counts once."""
    bytes: int
    """Size of all outputs, per device."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a compiled training step per device."""

    flops: float
    bytes_accessed: float
    """Memory traffic, in bytes."""
    collectives: Mapping[str, Collective]
    """Collective operations by kind, such as `all-reduce`."""


def abstract_batch(
    examples: Mapping[str, jax.ShapeDtypeStruct], batch_size: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of a batch, given those of examples."""
    place = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=place)
        for name, x in examples.items()
    }


def compile_step(
    steps: Steps,
    state: TrainState,
    batch: Mapping[str, jax.ShapeDtypeStruct],
    placement: Placement,
) -> jax.stages.Compiled:
    """Compiles the training step for an abstract state and batch.

    Raises:
        jax.errors.JaxRuntimeError: if the compiler fails, for example because the step needs more
            memory than a device has.
    """
    train = jax.jit(steps.train, donate_argnums=0, out_shardings=shardings(state, placement))
    return train.lower(state, batch).compile()


def cost_of(compiled: jax.stages.Compiled) -> Cost:
    """Returns the cost of a compiled step according to the compiler."""
    cost: Any = compiled.cost_analysis()
    return Cost(
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        collectives=collectives(compiled.as_text() or ""),
    )


def collectives(text: str) -> dict[str, Collective]:
    """Returns the collectives in the text of a compiled program (HLO), by kind."""
    sizes: dict[str, dict[Any, int]] = {}
    for number, match in enumerate(_COLLECTIVE.finditer(text)):
        if match["part"] == "-start":  # its shapes include inputs; those of `-done` do not
            continue
        # A collective that is overlapped with computation has copies in several fusions, which have
        # the same channel.
        channel = match["channel"] or f"number {number}"
        size = sum(_array_bytes(*array) for array in _ARRAY.findall(match["shapes"]))
        sizes.setdefault(match["kind"], {})[channel] = size
    return {kind: Collective(len(found), sum(found.values())) for kind, found in sizes.items()}


def _array_bytes(dtype: str, dimensions: str) -> int:
    """Returns the size of an array in HLO notation, such as `bf16` and `8,128`."""
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    return math.prod(int(n) for n in dimensions.split(",") if n) * bits // 8
