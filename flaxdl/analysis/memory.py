"""Device memory of a training step, for `inspect --memory` and out-of-memory errors.

The sizes of parameters, optimizer state and batch follow from their shapes and shardings. The size
of temporary buffers, such as activations, is the compiler's estimate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from rich import box
from rich.table import Table

from flaxdl.errors import UserError
from flaxdl.runs.plan import Plan
from flaxdl.runs.setup import Setup
from flaxdl.training.distributed.mesh import batch_sharding
from flaxdl.training.distributed.placement import shardings
from flaxdl.training.ema import EMA


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a training step on one device, in bytes."""

    parameters: int
    optimizer: int
    """Optimizer state."""
    average: int
    """Moving averages of parameters and statistics; 0 without EMA."""
    other_state: int
    """BatchNorm statistics and sums of metrics."""
    batch: int
    """Shard of the batch on this device."""
    temporary: int | None
    """Activations, gradients and other temporary buffers; None if compilation failed, for example
    because they are far too large."""
    available: int | None
    """Memory of the device; None if the device does not report it."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        state = self.parameters + self.optimizer + self.average + self.other_state
        return state + self.batch + (self.temporary or 0)


def memory_of(setup: Setup) -> Memory:
    """Compiles the training step of a run and returns the memory it requires per device."""
    state = setup.shapes()
    batch = {
        name: jax.ShapeDtypeStruct(
            (setup.config.batch_size, *x.shape[1:]), x.dtype, sharding=batch_sharding(setup.mesh)
        )
        for name, x in setup.training_examples.items()
    }
    places = shardings(state, setup.placement)
    train = jax.jit(setup.steps.train, donate_argnums=0, out_shardings=places)
    try:
        analysis: Any = train.lower(state, batch).compile().memory_analysis()
        temporary = analysis.temp_size_in_bytes
    except jax.errors.JaxRuntimeError:
        temporary = None
    parts = state.params, state.optimizer_state, state.average
    parameters, optimizer, average = map(_bytes, parts)
    statistics = setup.mesh.local_devices[0].memory_stats() or {}
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        average=average,
        other_state=_bytes(state) - parameters - optimizer - average,
        batch=_bytes(batch),
        temporary=temporary,
        available=statistics.get("bytes_limit"),
    )


def memory_table(plan: Plan, memory: Memory) -> Table:
    """Returns the memory as a table for `rich.print`, with flags that reduce it in the caption."""
    fsdp = plan.mesh.shape["fsdp"]
    sharded = f", sharded across {fsdp} devices" if fsdp > 1 else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_footer=True,
        caption_justify="left",
        caption="To reduce it: " + "; ".join(memory_savers(plan)),
    )
    of = "" if memory.available is None else f" of {_mebibytes(memory.available)}"
    table.add_column("per device", "total")
    table.add_column("MiB", _mebibytes(memory.total) + of, justify="right")
    for name, size in {
        f"parameters{sharded}": memory.parameters,
        f"optimizer state{sharded}": memory.optimizer,
        **({f"moving averages{sharded}": memory.average} if memory.average else {}),
        "BatchNorm statistics, metrics": memory.other_state,
        "batch": memory.batch,
        "activations, gradients and other temporary buffers": memory.temporary,
    }.items():
        table.add_row(name, "unknown" if size is None else _mebibytes(size))
    return table


def memory_savers(plan: Plan) -> list[str]:
    """Lists flags that reduce the memory of the training step, with the part that each reduces."""
    config, groups = plan.config, plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    found = []
    if config.batch_size // config.accumulate_steps > groups:
        found.append(
            f"--accumulate-steps {2 * config.accumulate_steps} or a smaller --batch-size "
            "(activations)"
        )
    if not getattr(config.model, "remat", True):
        found.append("--model.remat (activations)")
    if config.precision in ("float32", "tensorfloat32"):
        found.append("--precision bfloat16 (activations)")
    if plan.mesh.shape["data"] > 1 and config.parallel == "jit":
        found.append(f"--mesh.fsdp {groups} (parameters, optimizer)")
    if config.optimizer.momentum_dtype == "float32":
        found.append("--optimizer.momentum-dtype bfloat16 (optimizer)")
    if not config.freeze:
        found.append("--freeze PATTERN (optimizer, gradients)")
    if config.ema.decay is not None:
        is_simple = config.ema == EMA(decay=config.ema.decay)
        others = "" if is_simple else " --ema.every 1 --ema.warmup-steps 0"
        found.append(f"--ema.decay None{others} (moving averages)")
    return found


@contextmanager
def memory_explained(setup: Setup) -> Iterator[None]:
    """Context manager that converts an out-of-memory error of a device to a UserError.

    Raises:
        UserError: if a device is out of memory; the message lists the size of each part and flags
            that reduce it.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(_out_of_memory(setup)) from error


def _out_of_memory(setup: Setup) -> str:
    memory = memory_of(setup)
    temporary = "unknown" if memory.temporary is None else f"{_mebibytes(memory.temporary)} MiB"
    averages = f"moving averages {_mebibytes(memory.average)} MiB, " if memory.average else ""
    return (
        f"out of memory: the training step does not fit on a device (parameters "
        f"{_mebibytes(memory.parameters)} MiB, optimizer state {_mebibytes(memory.optimizer)} MiB, "
        f"{averages}batch {_mebibytes(memory.batch)} MiB, activations and other temporary buffers "
        f"{temporary}). To reduce it:\n  " + "\n  ".join(memory_savers(setup))
    )


def _bytes(tree: Any) -> int:
    """Returns the bytes per device of a tree of arrays or abstract arrays."""
    return sum(
        prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f}"
