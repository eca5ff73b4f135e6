"""How fast a training step and inference are beside PyTorch's, eager and compiled.

    python benchmarks/speed.py                                   every row
    python benchmarks/speed.py --rows lstm gru --rounds 3        two rows, sampled quickly
    python benchmarks/speed.py --gpu                             bfloat16, batches of a GPU's size

Each side of a row is a process of its own. They start from the same weights, are checked to compute
the same logits and gradients, and then measured in turn, A B C A B C. A ratio is PyTorch's time by
ours: above one we are faster. Rows are kept in `results/speed_cpu.json` (`speed_gpu.json`), the
table beside it in Markdown.
"""

import dataclasses
import datetime
import json
import math
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
from typing import Any, Literal

import numpy as np
import tyro
from speed_rows import ROWS

HERE = Path(__file__).parent
MODES = ("train", "infer")
Contender = Literal["eager", "compiled"]

# Logits and gradients are compared with PyTorch's in float64, as shares of the largest: ours may be
# so many times as far away as its own in the precision of the row, or so far in any case, and in
# float32 never further. The gradients of a ResNet on a few random images are so ill-conditioned
# that in ResNet-50 PyTorch's float32 is 3.5 % away, and ours 5.4 %; in bfloat16 both are noise. One
# unit of a ReLU that rounding takes to the other side of zero makes 3e-5.
TIMES, NEVER = 3, 0.2
ALWAYS = {"float32": 5e-5, "bfloat16": 3e-2}

# Programs of ours that are compiled at once. XLA tries kernels on the GPU to take the fastest; the
# more there are who do so, the less their times mean.
_COMPILING = 3

# Rows whose processes can share a GPU; each process takes one or two gigabytes of its memory.
_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class Worker:
    """A process of `speed_workers.py`."""

    process: subprocess.Popen

    @classmethod
    def start(cls, contender: str, row: str, folder: str, gpu: bool) -> "Worker":
        """Starts the process; it waits for commands."""
        command = [sys.executable, str(HERE / "speed_workers.py"), contender, row, folder]
        return cls(
            subprocess.Popen(
                command + ["--gpu"] * gpu,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Several processes share the GPU, so none may take all memory.
                env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            )
        )

    def ask(self, command: str) -> Any:
        """Sends a command and returns the answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that was asked to {command} died")
        return json.loads(answer)

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass(frozen=True)
class Sides:
    """The processes of one row, ours the last; PyTorch's first one writes the weights of all."""

    name: str
    workers: dict[str, Worker]
    folder: Path

    @classmethod
    @contextmanager
    def started(cls, name: str, contenders: Sequence[Contender], gpu: bool) -> Generator["Sides"]:
        """The processes, which end with the context."""
        with tempfile.TemporaryDirectory() as folder:
            workers = {
                side: Worker.start(side, name, folder, gpu) for side in (*contenders, "ours")
            }
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
        """Checks and compiles everything.

        Args:
            turn: held while ours is compiled.
            together: compiles the sides at the same time.

        Returns:
            What is known of the row before it is measured.

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
        """Adds the times of all sides, measured in turn, to what is known of the row."""
        row["matrix_flops_per_second"] = self.workers["ours"].ask("matrix_rate")
        for mode in MODES:
            row[mode] = self._measure_mode(mode, rounds, seconds)
            # Backward takes the products of forward twice.
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
                "least_ms": min(times[side]),  # where a busy machine disturbs all but a few rounds
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
        """The largest differences of logits and gradients from float64, as shares of a largest."""
        from safetensors.numpy import load_file

        found, exact = (load_file(self.folder / f"{name}.safetensors") for name in (side, "exact"))
        if found.keys() != exact.keys():
            raise RuntimeError(f"other parameters: {sorted(found.keys() ^ exact.keys())}")

        def difference(names: Sequence[str]) -> float:
            scale = max(float(np.abs(exact[name]).max()) for name in names)
            return max(float(np.abs(found[name] - exact[name]).max()) for name in names) / scale

        gradients = [name for name in found if name != "logits"]
        return {"logits": difference(["logits"]), "gradients": difference(gradients)}


def is_same(ours: float, theirs: float, precision: str) -> bool:
    """Whether our difference from float64 is about that of PyTorch."""
    is_sound = precision != "float32" or max(ours, theirs) <= NEVER
    return is_sound and ours <= max(TIMES * theirs, ALWAYS[precision])


def table(results: dict[str, Any]) -> str:
    """The rows in Markdown, and their geometric means."""
    lines = [
        "| row | training, ms | PyTorch eager / ours | compiled / ours "
        "| inference, ms | PyTorch eager / ours | compiled / ours | compiling training, s "
        "| training, share of the matrix rate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        row = results["rows"].get(name)
        if row is None:
            lines.append(f"| `{name}` | not measured | | | | | | | |")
            continue
        cells = []
        for mode in MODES:
            cells.append(f"{row[mode]['ours']['ms']:.3g}")
            for side in ("eager", "compiled"):
                found = row[mode].get(side)
                cells.append(
                    ""
                    if found is None
                    else f"{found['ratio']:.2f} ({found['ratios'][0]:.2f}–{found['ratios'][1]:.2f})"
                )
        cells.append(f"{row['compile_s']['train']['ours']:.1f}")
        cells.append(f"{row['train']['ours']['utilization']:.0%}")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    means = []
    for mode in MODES:
        means.append("")
        for side in ("eager", "compiled"):
            rows = results["rows"].values()
            ratios = [row[mode][side]["ratio"] for row in rows if side in row[mode]]
            means.append(f"{_geometric_mean(ratios):.2f}" if ratios else "")
    lines.append(f"| geometric mean | {' | '.join(means)} | | |")
    lines += ["", "The share counts every product of a convolution, more than Winograd's need."]
    return "\n".join(lines) + "\n"


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main(
    rows: tuple[Literal[tuple(ROWS)], ...] = tuple(ROWS),
    contenders: tuple[Contender, ...] = ("eager", "compiled"),
    rounds: int = 7,
    seconds: float = 1.0,
    gpu: bool = False,
    out: Path = HERE / "results",
) -> None:
    """Measures, and writes what was found after each row.

    Args:
        rows: Which networks.
        contenders: PyTorch's sides; `compiled` is `torch.compile`, and takes a C++ compiler.
        rounds: How often each side is measured.
        seconds: For how long each time.
        gpu: In bfloat16, with batches of a GPU's size, on the first one.
        out: Folder of the results.
    """
    file = out / ("speed_gpu.json" if gpu else "speed_cpu.json")
    results = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    results["machine"] = {"processor": _processor(), "cores": os.cpu_count()}
    for sides, row in _prepared(rows, contenders, gpu):
        sides.measure(row, rounds=rounds, seconds=seconds)
        results["rows"][sides.name] = row
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=2) + "\n")
        file.with_suffix(".md").write_text(table(results))
        shown = {
            (mode, side): round(row[mode][side]["ratio"], 2)
            for mode in MODES
            for side in contenders
        }
        print(sides.name, shown, flush=True)
    print(table(results))


def _prepared(
    rows: Sequence[str], contenders: Sequence[Contender], gpu: bool
) -> Generator[tuple[Sides, dict[str, Any]]]:
    """The rows, ready to be measured: on a CPU prepared one by one, beside a GPU several at once.

    There the many cores would have little to do, and compiling takes longer than measuring.
    """
    turn, size = threading.Semaphore(_COMPILING), _AT_ONCE if gpu else 1
    for group in (rows[start : start + size] for start in range(0, len(rows), size)):
        with ExitStack() as stack, ThreadPoolExecutor(len(group)) as pool:
            started = [stack.enter_context(Sides.started(name, contenders, gpu)) for name in group]
            known = list(pool.map(lambda sides: sides.prepare(turn, together=gpu), started))
            for sides, row in zip(started, known, strict=True):
                yield sides, row
                sides.end()  # the others can have its memory


if __name__ == "__main__":
    tyro.cli(main)
