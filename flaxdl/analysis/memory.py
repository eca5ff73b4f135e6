"""What a training step keeps in the memory of each device, before it is trained and when it fails.

The sizes of parameters, optimizer and batch follow from their shapes and places; what lives only
within a step, activations and temporary results, is the compiler's own figure.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from rich import box
from rich.table import Table

from flaxdl.errors import UserError
from flaxdl.runs.plan import Plan
from flaxdl.training.distributed.mesh import split_by_example
from flaxdl.training.distributed.placement import shardings


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a training step takes on one device."""

    parameters: int
    optimizer: int
    """The running means of the optimizer."""
    other_state: int
    """Statistics of BatchNorm, sums of metrics."""
    batch: int
    """This device's examples."""
    temporary: int | None
    """Activations, gradients and other results that live within a step; None if the compiler gave
    up, as it does where they are far too large."""
    available: int | None
    """What the device has, where it says so."""

    @property
    def total(self) -> int:
        """What must fit at once."""
        state = self.parameters + self.optimizer + self.other_state
        return state + self.batch + (self.temporary or 0)


def memory_of(plan: Plan) -> Memory:
    """Compiles the training step of a run, and says what it will take on each device."""
    state = plan.shapes()
    batch = {
        name: jax.ShapeDtypeStruct(
            (plan.config.batch_size, *x.shape[1:]), x.dtype, sharding=split_by_example(plan.mesh)
        )
        for name, x in plan.examples.items()
    }
    places = shardings(state, plan.placement)
    train = jax.jit(plan.steps.train, donate_argnums=0, out_shardings=places)
    try:
        analysis: Any = train.lower(state, batch).compile().memory_analysis()
        temporary = analysis.temp_size_in_bytes
    except jax.errors.JaxRuntimeError:
        temporary = None
    parameters, optimizer = _bytes(state.params), _bytes(state.optimizer_state)
    statistics = plan.mesh.local_devices[0].memory_stats() or {}
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        other_state=_bytes(state) - parameters - optimizer,
        batch=_bytes(batch),
        temporary=temporary,
        available=statistics.get("bytes_limit"),
    )


def memory_table(plan: Plan, memory: Memory) -> Table:
    """The figures as a table for `rich.print`, and below it what would make them smaller."""
    fsdp = plan.mesh.shape["fsdp"]
    shared = f", split over {fsdp} devices" if fsdp > 1 else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=True,
        caption_justify="left",
        caption="Less of it: " + "; ".join(switches(plan)),
    )
    of = "" if memory.available is None else f" of {_mebibytes(memory.available)}"
    table.add_column("on each device", "total")
    table.add_column("MiB", _mebibytes(memory.total) + of, justify="right")
    for name, size in {
        f"parameters{shared}": memory.parameters,
        f"optimizer{shared}": memory.optimizer,
        "statistics and metrics": memory.other_state,
        "batch": memory.batch,
        "activations, gradients and other temporary results": memory.temporary,
    }.items():
        table.add_row(name, "unknown" if size is None else _mebibytes(size))
    return table


def switches(plan: Plan) -> list[str]:
    """The flags that would make the step smaller, and what they make smaller."""
    config, groups = plan.config, plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    found = []
    if config.batch_size // config.accumulate_steps > groups:
        found.append(
            f"--accumulate-steps {2 * config.accumulate_steps} or a smaller --batch-size "
            "(activations)"
        )
    if not getattr(config.model, "remat", True):
        found.append("--model.remat True (activations)")
    if config.precision in ("float32", "tensorfloat32"):
        found.append("--precision bfloat16 (activations)")
    if plan.mesh.shape["data"] > 1 and config.parallel == "jit":
        found.append(f"--mesh.fsdp {groups} (parameters, optimizer)")
    if config.optimizer.momentum_dtype == "float32":
        found.append("--optimizer.momentum-dtype bfloat16 (optimizer)")
    if not config.freeze:
        found.append("--freeze PATTERN (optimizer, gradients)")
    return found


@contextmanager
def memory_explained(plan: Plan) -> Iterator[None]:
    """Within, a step that does not fit into the memory of a device is the user's mistake.

    Raises:
        UserError: saying what takes the memory, and what would make it less.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(_out_of_memory(plan)) from error


def _out_of_memory(plan: Plan) -> str:
    memory = memory_of(plan)
    temporary = "unknown" if memory.temporary is None else f"{_mebibytes(memory.temporary)} MiB"
    return (
        f"the training step does not fit into the memory of a device: parameters "
        f"{_mebibytes(memory.parameters)} MiB, optimizer {_mebibytes(memory.optimizer)} MiB, "
        f"batch {_mebibytes(memory.batch)} MiB, activations and other temporary results "
        f"{temporary}. What helps:\n  " + "\n  ".join(switches(plan))
    )


def _bytes(tree: Any) -> int:
    """What one device holds of a tree of arrays, or of their shapes."""
    return sum(
        prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"
