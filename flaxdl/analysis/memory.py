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

from flaxdl.analysis.compiled_step import abstract_batch, compile_step
from flaxdl.errors import UserError
from flaxdl.runs.plan import Plan
from flaxdl.runs.setup import Setup
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
    padding: int
    """Padding of the arrays above to the tiles of the device; only on TPU."""
    temporary: int | None
    """Activations, gradients and other temporary buffers; None if compilation failed, for example
    because they are far too large."""
    output: int
    """Results that do not reuse the memory of the state."""
    generated_code: int
    """Compiled program."""
    available: int | None
    """Memory of the device; None if the device does not report it."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        state = self.parameters + self.optimizer + self.average + self.other_state
        program = (self.temporary or 0) + self.output + self.generated_code
        return state + self.batch + self.padding + program


def memory_of(setup: Setup) -> Memory:
    """Compiles the training step of a run and returns the memory it requires per device."""
    statistics = setup.mesh.local_devices[0].memory_stats() or {}
    try:
        compiled = compile_setup(setup)
    except jax.errors.JaxRuntimeError:
        compiled = None
    return compiled_memory(setup, compiled, available=statistics.get("bytes_limit"))


def compile_setup(setup: Setup) -> jax.stages.Compiled:
    """Compiles the training step of a run, see `compile_step`."""
    return compile_step(setup.steps, setup.shapes(), _batch(setup), setup.placement)


def compiled_memory(
    setup: Setup, compiled: jax.stages.Compiled | None, *, available: int | None
) -> Memory:
    """Returns the memory per device of a compiled training step.

    Args:
        setup: setup of the run.
        compiled: its compiled step; None if compilation failed.
        available: memory of a device in bytes, if known.
    """
    state, batch = setup.shapes(), _bytes(_batch(setup))
    parts = state.params, state.optimizer_state, state.average
    parameters, optimizer, average = map(_bytes, parts)
    found: dict[str, Any] = {"padding": 0, "temporary": None, "output": 0, "generated_code": 0}
    if compiled is not None:
        analysis: Any = compiled.memory_analysis()
        found = {
            # Negative if arguments are not used by the step, which are not passed to it.
            "padding": max(analysis.argument_size_in_bytes - _bytes(state) - batch, 0),
            "temporary": analysis.temp_size_in_bytes,
            "output": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
            "generated_code": analysis.generated_code_size_in_bytes,
        }
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        average=average,
        other_state=_bytes(state) - parameters - optimizer - average,
        batch=batch,
        available=available,
        **found,
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
    of = "" if memory.available is None else f" of {mebibytes(memory.available)}"
    table.add_column("per device", "total")
    table.add_column("MiB", mebibytes(memory.total) + of, justify="right")
    for name, size in {
        f"parameters{sharded}": memory.parameters,
        f"optimizer state{sharded}": memory.optimizer,
        **({f"moving averages{sharded}": memory.average} if memory.average else {}),
        "BatchNorm statistics, metrics": memory.other_state,
        "batch": memory.batch,
        **({"padding of the arrays above to tiles": memory.padding} if memory.padding else {}),
        "activations, gradients and other temporary buffers": memory.temporary,
        **({"output, without the new state": memory.output} if memory.output else {}),
        **({"generated code": memory.generated_code} if memory.generated_code else {}),
    }.items():
        table.add_row(name, "unknown" if size is None else mebibytes(size))
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
        raise UserError(does_not_fit(setup, memory_of(setup), "on a device")) from error


def does_not_fit(plan: Plan, memory: Memory, where: str) -> str:
    """Returns an error message with the size of each part, and flags that reduce it."""
    temporary = "unknown" if memory.temporary is None else f"{mebibytes(memory.temporary)} MiB"
    averages = f"moving averages {mebibytes(memory.average)} MiB, " if memory.average else ""
    return (
        f"out of memory: the training step does not fit {where} (parameters "
        f"{mebibytes(memory.parameters)} MiB, optimizer state {mebibytes(memory.optimizer)} MiB, "
        f"{averages}batch {mebibytes(memory.batch)} MiB, activations and other temporary buffers "
        f"{temporary}). To reduce it:\n  " + "\n  ".join(memory_savers(plan))
    )


def _batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    return abstract_batch(setup.training_examples, setup.config.batch_size, setup.mesh)


def _bytes(tree: Any) -> int:
    """Returns the bytes per device of a tree of arrays or abstract arrays."""
    return sum(
        prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def mebibytes(size: int) -> str:
    """Returns a size in bytes as text, in MiB without the unit."""
    return f"{size / 2**20:,.1f}"
