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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from speed_rows import ROWS

HERE = Path(__file__).parent
MODES = ("train", "infer")
Contender = Literal["eager", "compiled"]

# Logits and gradients are compared with PyTorch's in float64, as shares of the largest: ours may be
# so many times as far away as its own in the precision of the row, or so far in any case, and never
# further. The gradients of a ResNet on a few random images are so ill-conditioned that in ResNet-50
# PyTorch's float32 is 3.5 % away, and ours 5.4 %.
TIMES, ALWAYS, NEVER = 3, 1e-5, 0.2


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
                command + ["--gpu"] * gpu, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def measure_row(
    name: str, contenders: Sequence[Contender], *, rounds: int, seconds: float, gpu: bool
) -> dict[str, Any]:
    """Everything about one row, as JSON.

    Raises:
        RuntimeError: if the sides do not compute the same.
    """
    with tempfile.TemporaryDirectory() as folder:
        # PyTorch is first, since it writes the weights.
        sides = (*contenders, "ours")
        workers = {side: Worker.start(side, name, folder, gpu) for side in sides}
        try:
            there, here = workers[contenders[0]].ask("check"), workers["ours"].ask("check")
            parity = {
                "ours": _differences(Path(folder), "ours"),
                "pytorch": _differences(Path(folder), "pytorch"),
                "loss": [here["loss"], there["loss"]],
            }
            for what, theirs in parity["pytorch"].items():
                if not is_same(parity["ours"][what], theirs):
                    raise RuntimeError(f"the sides of {name} do not compute the same: {parity}")
            facts = workers["ours"].ask("facts")
            row = facts | {
                "versions": facts["versions"] | workers[contenders[0]].ask("facts")["versions"]
            }
            row |= {"parity": parity, "measured": datetime.date.today().isoformat()}
            row["matrix_flops_per_second"] = workers["ours"].ask("matrix_rate")
            for mode in MODES:
                row[mode] = _measure_mode(workers, mode, rounds, seconds)
                # Backward takes the products of forward twice.
                flops = row["forward_flops"] * (3 if mode == "train" else 1)
                rate = flops / row[mode]["ours"]["ms"] * 1000
                row[mode]["ours"]["utilization"] = rate / row["matrix_flops_per_second"]
        finally:
            for worker in workers.values():
                worker.end()
    return row


def _measure_mode(
    workers: dict[str, Worker], mode: str, rounds: int, seconds: float
) -> dict[str, Any]:
    first = {side: worker.ask(f"{mode} {seconds}") for side, worker in workers.items()}
    times: dict[str, list[float]] = {side: [] for side in workers}
    for _ in range(rounds):
        for side, worker in workers.items():
            times[side].append(worker.ask(f"{mode} {seconds}")["ms"])
    result: dict[str, Any] = {
        side: {
            "ms": statistics.median(times[side]),
            "least_ms": min(times[side]),  # where a busy machine disturbs all but a few rounds
            "first_step_s": first[side]["first_step_s"],
        }
        for side in workers
    }
    for side in workers:
        if side != "ours":
            ratios = [t / ours for t, ours in zip(times[side], times["ours"], strict=True)]
            result[side]["ratio"] = statistics.median(ratios)
            result[side]["ratios"] = [min(ratios), max(ratios)]
    return result


def is_same(ours: float, theirs: float) -> bool:
    """Whether our difference from float64 is about that of PyTorch."""
    return ours <= min(max(TIMES * theirs, ALWAYS), NEVER) and theirs <= NEVER


def _differences(folder: Path, side: str) -> dict[str, float]:
    """The largest differences of logits and gradients from float64, as shares of the largest."""
    from safetensors.numpy import load_file

    found, exact = (load_file(folder / f"{name}.safetensors") for name in (side, "exact"))
    if found.keys() != exact.keys():
        raise RuntimeError(f"other parameters: {sorted(found.keys() ^ exact.keys())}")

    def difference(names: Sequence[str]) -> float:
        scale = max(float(np.abs(exact[name]).max()) for name in names)
        return max(float(np.abs(found[name] - exact[name]).max()) for name in names) / scale

    gradients = [name for name in found if name != "logits"]
    return {"logits": difference(["logits"]), "gradients": difference(gradients)}


def table(results: dict[str, Any]) -> str:
    """The rows in Markdown, and their geometric means."""
    lines = [
        "| row | training, ms | PyTorch eager / ours | compiled / ours "
        "| inference, ms | PyTorch eager / ours | compiled / ours | first step, s "
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
        cells.append(f"{row['train']['ours']['first_step_s']:.1f}")
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
    for name in rows:
        results["rows"][name] = measure_row(
            name, contenders, rounds=rounds, seconds=seconds, gpu=gpu
        )
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=2) + "\n")
        file.with_suffix(".md").write_text(table(results))
        shown = {
            (mode, side): round(results["rows"][name][mode][side]["ratio"], 2)
            for mode in MODES
            for side in contenders
        }
        print(name, shown, flush=True)
    print(table(results))


if __name__ == "__main__":
    tyro.cli(main)
