"""Speed of a training step and of inference, compared with PyTorch.

    python benchmarks/speed.py                                   every row
    python benchmarks/speed.py --rows lstm gru --rounds 3        two rows, sampled quickly
    python benchmarks/speed.py --before ../earlier               also an earlier commit of flaxdl
    python benchmarks/speed.py --gpu                             bfloat16, batches of a GPU's size

Each contender runs in its own process. All start from the same weights, are checked to compute the
same logits and gradients, and are then measured in turn, A B C A B C. A ratio is the contender's
time divided by ours: above one we are faster. Results are written to `results/speed_VENDOR.json`
(`amd`, `intel` or `gpu`) and as a Markdown table to the file next to it.
"""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro
from speed_rows import ROWS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODES = ("train", "infer")

# `eager_keeping` is eager PyTorch with glibc told to keep freed memory, as flaxdl does in a run;
# `reference` is flaxdl by the definitions of its ops, `before` an earlier commit of flaxdl.
PyTorchSide = Literal["eager", "eager_keeping", "compiled"]
Contender = Literal[PyTorchSide, "reference", "before"]
TITLES = {
    "eager": "PyTorch eager",
    "eager_keeping": "PyTorch eager, keeping memory",
    "compiled": "PyTorch compiled",
    "reference": "reference mode",
    "before": "before",
}
ENVIRONMENTS = {
    "eager_keeping": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
        "MALLOC_TOP_PAD_": str(64 * 2**20),
    },
    "reference": {"FLAXDL_REFERENCE": "1"},
}

# Logits and gradients are compared with PyTorch's in float64, relative to the largest value. Our
# error may be up to MAX_RATIO times PyTorch's own error in the precision of the row, or up to
# TOLERANCE; in float32 neither may exceed MAX_ERROR. The gradients of a ResNet on a few random
# images are so ill-conditioned that for ResNet-50 PyTorch's float32 is off by 3.5 %, and ours by
# 5.4 %; in bfloat16 both are noise. A single ReLU unit that rounds to the other side of zero adds
# 3e-5.
MAX_RATIO, MAX_ERROR = 3, 0.2
TOLERANCE = {"float32": 5e-5, "bfloat16": 3e-2}

# Programs compiled at the same time. XLA autotunes kernels on the GPU; the more processes do so,
# the less reliable are their timings.
_COMPILING = 3

# Rows whose processes can share a GPU; each process takes 1 to 2 GB of its memory.
_PARALLEL_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Worker:
    """Process of `speed_workers.py`."""

    process: subprocess.Popen

    @classmethod
    def start(cls, script: Path, *arguments: str, **environment: str) -> "Worker":
        """Starts a script of a checkout's `benchmarks/` with its flaxdl; it waits for commands."""
        environment |= {
            "PYTHONPATH": str(script.parent.parent),
            # Several processes share the GPU, so none may take all memory.
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        return cls(
            subprocess.Popen(
                [sys.executable, str(script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | environment,
            )
        )

    def ask(self, command: str) -> Any:
        """Sends a command and returns the response."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker process died during the command {command!r}")
        return json.loads(answer)

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass(frozen=True)
class Sides:
    """Processes of one row, flaxdl's last; the first one writes the weights for all."""

    name: str
    workers: dict[str, Worker]
    folder: Path

    @classmethod
    @contextmanager
    def started(
        cls, name: str, contenders: Sequence[str], gpu: bool, before: Path | None
    ) -> Generator["Sides"]:
        """The processes, which end with the context."""
        with tempfile.TemporaryDirectory() as folder:
            workers = {}
            for side in (*contenders, "ours"):
                checkout = before if before and side == "before" else ROOT
                workers[side] = Worker.start(
                    checkout / "benchmarks" / "speed_workers.py",
                    side if side in get_args(PyTorchSide) else "ours",
                    name,
                    folder,
                    *["--gpu"] * gpu,
                    **ENVIRONMENTS.get(side, {}),
                )
            sides = cls(name, workers, Path(folder))
            try:
                yield sides
            finally:
                sides.end()

    def end(self) -> None:
        """Ends the processes."""
        for worker in self.workers.values():
            worker.end()

    def prepare(self, turn: AbstractContextManager, *, together: bool) -> dict[str, Any]:
        """Checks and compiles all sides.

        Args:
            turn: held while flaxdl's side is compiled.
            together: compile the sides at the same time.

        Returns:
            The record of the row, without measurements.

        Raises:
            RuntimeError: if the sides do not compute the same.
        """
        theirs, ours = next(iter(self.workers.values())), self.workers["ours"]
        losses = [theirs.ask("check")["loss"]]
        with ThreadPoolExecutor(len(self.workers) if together else 1) as pool:
            others = pool.map(self._compile, [side for side in self.workers if side != "ours"])
            if not together:
                others = list(others)
            with turn:
                losses.insert(0, ours.ask("check")["loss"])
                compiling = self._compile("ours")
            compiling |= {key: seconds for other in others for key, seconds in other.items()}
        parity = {side: self._differences(side) for side in ("ours", "pytorch")}
        facts = ours.ask("facts")
        for what, difference in parity["pytorch"].items():
            if not is_same(parity["ours"][what], difference, facts["precision"]):
                raise RuntimeError(f"the sides of {self.name} do not compute the same: {parity}")
        versions = facts["versions"] | theirs.ask("facts")["versions"]
        return facts | {
            "versions": versions,
            "parity": parity | {"loss": losses},
            "compile_s": {
                mode: {side: compiling[side, mode] for side in self.workers} for mode in MODES
            },
            "measured": datetime.date.today().isoformat(),
        }

    def _compile(self, side: str) -> dict[tuple[str, str], float]:
        ask = self.workers[side].ask
        return {(side, mode): ask(f"prepare {mode}")["compile_s"] for mode in MODES}

    def measure(self, row: dict[str, Any], *, rounds: int, seconds: float) -> None:
        """Measures all sides alternately, and adds the times to the record of the row."""
        row |= {"rounds": rounds, "seconds": seconds}
        row["matrix_flops_per_second"] = self.workers["ours"].ask("matrix_rate")
        for mode in MODES:
            row[mode] = self._measure_mode(mode, rounds, seconds)
            # The backward pass has twice the products of the forward pass.
            flops = row["forward_flops"] * (3 if mode == "train" else 1)
            rate = flops / row[mode]["ours"]["ms"] * 1000
            row[mode]["ours"]["utilization"] = rate / row["matrix_flops_per_second"]

    def _measure_mode(self, mode: str, rounds: int, seconds: float) -> dict[str, Any]:
        times: dict[str, list[float]] = {side: [] for side in self.workers}
        for _ in range(rounds):
            for side, worker in self.workers.items():
                times[side].append(worker.ask(f"{mode} {seconds}")["ms"])
        result: dict[str, Any] = {
            side: {
                "ms": statistics.median(times[side]),
                "least_ms": min(
                    times[side]
                ),  # for busy machines, on which most rounds are disturbed
            }
            for side in self.workers
        }
        for side in self.workers:
            if side != "ours":
                ratios = [t / ours for t, ours in zip(times[side], times["ours"], strict=True)]
                result[side]["ratio"] = statistics.median(ratios)
                result[side]["ratios"] = [min(ratios), max(ratios)]
        return result

    def _differences(self, side: str) -> dict[str, float]:
        """Returns the maximum relative errors of logits and gradients with respect to float64."""
        from safetensors.numpy import load_file

        found, exact = (load_file(self.folder / f"{name}.safetensors") for name in (side, "exact"))
        if found.keys() != exact.keys():
            raise RuntimeError(f"the parameters differ: {sorted(found.keys() ^ exact.keys())}")

        def difference(names: Sequence[str]) -> float:
            scale = max(float(np.abs(exact[name]).max()) for name in names)
            return max(float(np.abs(found[name] - exact[name]).max()) for name in names) / scale

        gradients = [name for name in found if name != "logits"]
        return {"logits": difference(["logits"]), "gradients": difference(gradients)}


def is_same(ours: float, theirs: float, precision: str) -> bool:
    """Returns True if our difference from float64 is similar to PyTorch's."""
    is_sound = precision != "float32" or max(ours, theirs) <= MAX_ERROR
    return is_sound and ours <= max(MAX_RATIO * theirs, TOLERANCE[precision])


def table(results: dict[str, Any]) -> str:
    """A table per mode in Markdown, with the geometric means of the ratios."""
    rows = results["rows"]
    dates = sorted(row["measured"] for row in rows.values())
    machine = results["machine"]
    devices = {row["device"] for row in rows.values()} - {"cpu"}
    hardware = ", ".join([*sorted(devices), machine["processor"], f"{machine['cores']} cores"])
    lines = [
        f"{hardware}, {dates[0]} to {dates[-1]}.",
        "Ratios are the contender's time divided by ours: median, smallest and largest of paired",
        "rounds.",
    ]
    for mode, title in zip(MODES, ("Training", "Inference"), strict=True):
        sides = [side for side in TITLES if any(side in row[mode] for row in rows.values())]
        shown = [TITLES[side] for side in sides]
        header = [title, "ours, ms", *shown, "compiling, s", "fraction of the matrix rate"]
        lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        for name in ROWS:
            if name not in rows:
                lines.append(f"| `{name}` | not measured |" + " |" * (len(header) - 2))
                continue
            row = rows[name]
            cells = [f"`{name}`", f"{row[mode]['ours']['ms']:.3g}"]
            cells += [_ratio(row[mode].get(side)) for side in sides]
            cells.append(f"{row['compile_s'][mode]['ours']:.1f}")
            cells.append(f"{row[mode]['ours']['utilization']:.0%}")
            lines.append(f"| {' | '.join(cells)} |")
        cells = ["geometric mean", ""]
        for side in sides:
            ratios = [row[mode][side]["ratio"] for row in rows.values() if side in row[mode]]
            is_whole = len(ratios) == len(rows)  # a mean over some rows would mislead
            cells.append(f"{statistics.geometric_mean(ratios):.2f}" if is_whole else "")
        cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "The fraction counts every product of a convolution, more than Winograd needs."]
    return "\n".join(lines) + "\n"


def _ratio(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return f"{found['ratio']:.2f} ({found['ratios'][0]:.2f}–{found['ratios'][1]:.2f})"


def processor() -> dict[str, str]:
    """The fields of the first processor in `/proc/cpuinfo`, such as its model name."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def vendor() -> str:
    """`amd`, `intel`, or else the architecture."""
    vendor = processor().get("vendor_id", "")
    return {"AuthenticAMD": "amd", "GenuineIntel": "intel"}.get(vendor, platform.machine())


def main(
    rows: tuple[Literal[tuple(ROWS)], ...] = tuple(ROWS),
    contenders: tuple[Contender, ...] = ("eager", "eager_keeping", "compiled", "reference"),
    before: Path | None = None,
    rounds: int = 7,
    seconds: float = 1.0,
    gpu: bool = False,
    out: Path = HERE / "results",
) -> None:
    """Measure and write the results of each row as soon as it is done.

    Args:
        rows: Networks to measure.
        contenders: Sides to compare with, at least one of them PyTorch; `compiled` is
            `torch.compile` and takes a C++ compiler.
        before: Checkout of an earlier commit of flaxdl to compare with.
        rounds: Number of measurements per side.
        seconds: Duration of each measurement.
        gpu: Measure in bfloat16 with batches of a GPU's size, on the first one.
        out: Folder of the results.
    """
    sides = [side for side in TITLES if side in contenders or (side == "before" and before)]
    file = out / f"speed_{'gpu' if gpu else vendor()}.json"
    results = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    results["machine"] = {"processor": processor().get("model name", ""), "cores": os.cpu_count()}
    for row_sides, row in _prepared(rows, sides, gpu, before):
        row_sides.measure(row, rounds=rounds, seconds=seconds)
        if before:
            command = ["git", "-C", str(before), "rev-parse", "--short", "HEAD"]
            row["before"] = subprocess.check_output(command, text=True).strip()
        results["rows"][row_sides.name] = row
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=2) + "\n")
        file.with_suffix(".md").write_text(table(results))
        shown = {
            (mode, side): round(row[mode][side]["ratio"], 2) for mode in MODES for side in sides
        }
        print(row_sides.name, shown, flush=True)
    print(table(results))


def _prepared(
    rows: Sequence[str], contenders: Sequence[str], gpu: bool, before: Path | None
) -> Generator[tuple[Sides, dict[str, Any]]]:
    """The rows, ready to be measured: one by one on a CPU, several at the same time on a GPU.

    Compiling for a GPU takes longer than measuring, and leaves most of the cores idle.
    """
    turn, size = threading.Semaphore(_COMPILING), _PARALLEL_ROWS if gpu else 1
    for group in (rows[start : start + size] for start in range(0, len(rows), size)):
        with ExitStack() as stack, ThreadPoolExecutor(len(group)) as pool:
            started = [
                stack.enter_context(Sides.started(name, contenders, gpu, before)) for name in group
            ]
            known = list(pool.map(lambda sides: sides.prepare(turn, together=gpu), started))
            for sides, row in zip(started, known, strict=True):
                yield sides, row
                sides.end()  # frees its memory for the others


if __name__ == "__main__":
    tyro.cli(main)
