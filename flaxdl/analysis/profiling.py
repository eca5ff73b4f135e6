"""Where the time of a training step goes: a trace of a few steps, and its longest operations."""

import re
from collections import defaultdict
from collections.abc import Iterator
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

STEPS = 5  # that are traced
_WARM_UP = 2  # steps before them

# In the compiled program: `%fusion.3 = ... metadata={op_name="jit(train)/conv1/dot" ...}`.
_NAMED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{[^}]*op_name=\"([^\"]*)\"", re.M)
_NO_LAYER = re.compile(r"\(|^cond$|^branch_\d+_fun$")  # in the path of a source
# They count what is in them a second time. `cond` is also how `conditional` begins.
_CONTAINERS = ("while", "cond", "call")
# A GPU is handed many kernels at once, and all of them are said to be of this one operation.
_RECORDED = "command_buffer"
_IN_NO_FUNCTION = re.compile(r"[^\w]")


@dataclass(frozen=True)
class Operation:
    """What one operation of the compiled step takes."""

    name: str
    """Its name in the compiled program."""
    source: str
    """The layer and the function that it comes from, as far as the compiler tells."""
    milliseconds: float
    """In each step, over all cores or devices."""
    share: float
    """Of the time of all operations."""


@dataclass(frozen=True)
class Profile:
    """Operations of a training step, the longest first."""

    operations: list[Operation]
    folder: Path
    """Where the trace is, for TensorBoard's profile plugin or https://ui.perfetto.dev."""

    def table(self, count: int = 10) -> Table:
        """The most expensive operations, for `rich.print`."""
        table = Table(box=box.SIMPLE_HEAD, caption="milliseconds of each step, over all cores")
        table.add_column("operation", overflow="fold")
        table.add_column("from", overflow="fold")
        table.add_column("ms", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
        for operation in self.operations[:count]:
            ms, share = f"{operation.milliseconds:,.2f}", f"{operation.share:.1%}"
            table.add_row(operation.name, operation.source, ms, share)
        return table


def profile(config: Config, workdir: str | Path) -> Profile:
    """Trains for a few steps under JAX's profiler, and forgets what it has trained.

    Of several processes the first one is traced; in the others the profile has no operations.

    Args:
        config: the run; its step is compiled under `jit`.
        workdir: the trace is written into its folder `profile`.

    Raises:
        UserError: if config, data and weights do not fit together, or the folder cannot be
            written.
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
        with jax.profiler.trace(folder) if is_first() else nullcontext():
            for _ in range(STEPS):
                state = jax.block_until_ready(step(state, place(next(batches))))
    if not is_first():
        return Profile([], folder)
    return Profile(_operations(folder, dict(_NAMED.findall(step.as_text() or ""))), folder)


def _make(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _operations(folder: Path, sources: dict[str, str]) -> list[Operation]:
    nanoseconds: defaultdict[str, float] = defaultdict(float)
    newest = max(folder.glob("**/*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    for name, duration in _events(ProfileData.from_file(str(newest))):
        if not name.startswith(_CONTAINERS):
            nanoseconds[name] += duration
    total = sum(nanoseconds.values())
    # A GPU's kernels are named after their operations, as far as names of functions go.
    sources = {_IN_NO_FUNCTION.sub("_", name): source for name, source in sources.items()} | sources
    return [
        Operation(name, _readable(sources.get(name, "")), time / 1e6 / STEPS, time / total)
        for name, time in sorted(nanoseconds.items(), key=lambda item: -item[1])
    ]


def _events(data: Any) -> Iterator[tuple[str, float]]:
    """Name and nanoseconds of each run of an operation."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op")
                if str(name).startswith(_RECORDED):
                    yield event.name, event.duration_ns  # of the kernel
                elif name is not None:
                    yield str(name), event.duration_ns
                elif line.name == "XLA Ops":  # of a TPU, named by its whole text
                    yield event.name.partition(" = ")[0].lstrip("%"), event.duration_ns


def _readable(source: str) -> str:
    """`jit(train)/transpose(jvp(VGG))/features.0/conv` → `features.0/conv, backward`."""
    parts = [part for part in source.split("/") if not _NO_LAYER.search(part)]
    return "/".join(parts) + (", backward" if "transpose(" in source else "")
