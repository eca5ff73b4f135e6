"""Tables and messages about training steps compiled for a TPU."""

from rich import box
from rich.table import Table

from flaxdl.analysis.memory import does_not_fit, mebibytes
from flaxdl.analysis.tpu_step import LargestBatch, TPUCompiler, TPUStep


def cost_table(step: TPUStep) -> Table:
    """Returns the cost of a step that fits, and of its compilation, as a table for `rich.print`."""
    assert step.cost is not None
    table = Table("per device and step", box=box.SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_row("computation", f"{step.cost.flops / 1e9:,.2f} GFLOP")
    table.add_row("memory traffic", f"{step.cost.bytes_accessed / 1e9:,.2f} GB")
    for kind, found in step.cost.collectives.items():
        table.add_row(f"{kind} ({found.count:,})", f"{found.bytes / 1e6:,.2f} MB")
    if not step.cost.collectives:
        table.add_row("collectives", "none")
    table.add_row("compilation", f"{step.seconds:,.0f} s")
    return table


def batch_table(found: LargestBatch) -> Table:
    """Returns the memory of all compiled batch sizes as a table for `rich.print`."""
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("batch size", "MiB per device", "fits", "seconds to compile"):
        table.add_column(title, justify="right")
    for step in sorted(found.steps, key=lambda step: step.batch_size):
        fits = "yes" if step.fits else "no"
        table.add_row(f"{step.batch_size:,}", mebibytes(step.needed), fits, f"{step.seconds:,.0f}")
    return table


def largest_batch_text(compiler: TPUCompiler, found: LargestBatch) -> str:
    """Returns a sentence on the largest batch size."""
    size, by_size = found.batch_size, {step.batch_size: step for step in found.steps}
    if not size:
        return "no batch size fits"
    text = f"largest batch size: about {size:,}, by linear extrapolation"
    if size == compiler.largest:
        text = f"largest batch size: {size:,} or more, which is all training examples"
    check = by_size[size]
    if check.fits:
        return f"{text}; compiled with it, the step fits"
    return f"{text}; but compiled with it, the step does not fit: {check.message}"


def too_large_text(compiler: TPUCompiler, step: TPUStep, found: LargestBatch) -> str:
    """Returns the error message for a step that does not fit, with the compiler's error."""
    where = f"on a device of {compiler.device.device_kind} with batch size {step.batch_size}"
    return (
        f"{does_not_fit(compiler.setup, step.memory, where)}\n{step.message}\n"
        f"{largest_batch_text(compiler, found)}"
    )
