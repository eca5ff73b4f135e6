"""Profiling of training steps: a trace of a few steps and their most expensive modules."""

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData
from rich import box
from rich.table import Table

from flaxdl.config import Config
from flaxdl.filesystem.outputs import writing
from flaxdl.filesystem.paths import local_path
from flaxdl.runs.initial_weights import initial_state
from flaxdl.runs.setup import set_up
from flaxdl.training.distributed.collectives import is_first, run_on_all
from flaxdl.training.distributed.placement import put_batch, shardings

STEPS = 5  # traced steps
_WARM_UP = 2  # steps before the trace

# In the compiled program: `%fusion.3 = ... metadata={op_name="jit(train)/conv1/dot" ...}`.
_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{[^}]*op_name=\"([^\"]*)\"", re.M)
_NO_LAYER = re.compile(r"\(|^cond$|^branch_\d+_fun$")  # parts of a path that are not modules
# Prefixes of operations that contain others and would count them twice; `cond` covers
# `conditional`.
_CONTAINERS = ("while", "cond", "call")
# On a GPU, kernels launched together as a CUDA graph are all attributed to this operation.
_RECORDED = "command_buffer"
_BACKWARD = "transpose("  # in the paths of operations of the backward pass
_IN_NO_FUNCTION = re.compile(r"[^\w]")


@dataclass(frozen=True)
class Operation:
    """Time of one operation of the compiled training step."""

    name: str
    """Name in the compiled program."""
    source: str
    """Module and function that the operation comes from; empty if the compiler records none."""
    module: str
    """Path of the layer, such as `layer1.0.conv1`; empty outside modules with parameters."""
    is_backward: bool
    """True for operations of the backward pass."""
    milliseconds: float
    """Time per step, summed over all cores or devices."""
    fraction: float
    """Fraction of the total time of all operations."""


@dataclass(frozen=True)
class Profile:
    """Operations of a training step, the most expensive first."""

    operations: list[Operation]
    folder: Path
    """Trace folder, for TensorBoard's profile plugin or https://ui.perfetto.dev."""
    step_milliseconds: float
    """Average duration of a traced step, in milliseconds."""

    def table(self, count: int = 10) -> Table:
        """Returns the times of the `count` most expensive modules as a table for `rich.print`."""
        times: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for operation in self.operations:
            times[operation.module][operation.is_backward] += operation.milliseconds
        rows = sorted(times.items(), key=lambda item: -sum(item[1]))
        if rest := rows[count:]:
            others = [sum(column) for column in zip(*(ms for _, ms in rest), strict=True)]
            rows = [*rows[:count], (f"{len(rest)} others", others)]
        total = sum(sum(ms) for _, ms in rows)
        table = Table(
            box=box.SIMPLE_HEAD,
            show_footer=True,
            caption=f"a step takes {self.step_milliseconds:,.1f} ms; "
            "the columns are ms per step, summed over all cores",
            caption_justify="left",
        )
        table.add_column("module", "total", overflow="fold")
        forward, backward = (sum(ms[part] for _, ms in rows) for part in (0, 1))
        for title, ms in (("forward", forward), ("backward", backward), ("both", total)):
            table.add_column(title, f"{ms:,.2f}", justify="right", no_wrap=True)
        table.add_column("fraction", justify="right", no_wrap=True)
        for name, ms in rows:
            fraction = f"{sum(ms) / total:.1%}"
            cells = (f"{x:,.2f}" for x in (*ms, sum(ms)))
            table.add_row(name or "(not in a layer)", *cells, fraction)
        return table


def profile(config: Config, workdir: str | Path) -> Profile:
    """Trains for a few steps under JAX's profiler and discards the trained state.

    With several processes, only the first one is traced; in the others, the profile has no
    operations.

    Args:
        config: configuration of the run; the step is always compiled with `jit`.
        workdir: working directory of the run; the trace is written to its subfolder `profile`.

    Raises:
        UserError: if config, data and weights are incompatible, or if the folder cannot be written.
    """
    setup = set_up(config)
    state, folder = initial_state(setup), local_path(workdir) / "profile"
    place = partial(put_batch, mesh=setup.mesh)
    places = shardings(state, setup.placement)
    train = jax.jit(setup.steps.train, donate_argnums=0, out_shardings=places)
    with closing(setup.training_batches()) as batches:
        step = train.lower(state, place(next(batches))).compile()
        for _ in range(_WARM_UP):
            state = jax.block_until_ready(step(state, place(next(batches))))
        run_on_all(partial(_make, folder) if is_first() else lambda: None)
        seconds = 0.0
        with jax.profiler.trace(folder) if is_first() else nullcontext():
            for _ in range(STEPS):
                batch = place(next(batches))
                start = time.perf_counter()
                state = jax.block_until_ready(step(state, batch))
                seconds += time.perf_counter() - start
    milliseconds = 1000 * seconds / STEPS
    if not is_first():
        return Profile([], folder, milliseconds)
    sources = dict(_NAMED.findall(step.as_text() or ""))
    return Profile(_operations(folder, sources, state.params), folder, milliseconds)


def _make(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _operations(
    folder: Path, sources: dict[str, str], params: Mapping[str, Any]
) -> list[Operation]:
    """Returns the operations of the newest trace in a folder.

    Args:
        folder: folder to search for traces.
        sources: `op_name` (the path recorded by the compiler) of each operation, by name.
        params: parameter tree; its inner nodes are the modules.
    """
    nanoseconds: defaultdict[str, float] = defaultdict(float)
    newest = max(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    for name, duration in _events(ProfileData.from_file(str(newest))):
        if not name.startswith(_CONTAINERS):
            nanoseconds[name] += duration
    total = sum(nanoseconds.values())
    # GPU kernels are named after their operations, with `_` for characters other than \w.
    sources = {_IN_NO_FUNCTION.sub("_", name): source for name, source in sources.items()} | sources
    return [
        Operation(
            name=name,
            source=_readable(source := sources.get(name, "")),
            module=_module(source, params),
            is_backward=_BACKWARD in source,
            milliseconds=duration / 1e6 / STEPS,
            fraction=duration / total,
        )
        for name, duration in sorted(nanoseconds.items(), key=lambda item: -item[1])
    ]


def _events(data: Any) -> Iterator[tuple[str, float]]:
    """Yields the name and the duration, in nanoseconds, of each execution of an operation."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if str(name).startswith(_RECORDED):
                    yield event.name, event.duration_ns  # the kernel's name
                elif name is not None:
                    yield str(name), event.duration_ns
                elif line.name == "XLA Ops":  # on a TPU the name is the text of the instruction
                    yield event.name.partition(" = ")[0].lstrip("%"), event.duration_ns


def _readable(source: str) -> str:
    """Shortens the path of an operation for display.

    For example, the path `jit(train)/transpose(jvp(VGG))/features.0/conv` is shown as
    `features.0/conv, backward`.
    """
    parts = [part for part in source.split("/") if not _NO_LAYER.search(part)]
    return "/".join(parts) + (", backward" if _BACKWARD in source else "")


def _module(source: str, params: Mapping[str, Any]) -> str:
    """Returns the path of the innermost module in the path of an operation.

    For example, `jit(train)/jvp(ResNet)/layer1.0/conv1/conv` is in `layer1.0.conv1`.
    """
    path, modules = [], params
    for part in re.split("[/()]+", source):
        if isinstance(inner := modules.get(part), Mapping):
            path.append(part)
            modules = inner
    return ".".join(path)
