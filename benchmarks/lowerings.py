"""Gain of each fast lowering in `flaxdl.ops`: time of a step or of inference without it, by ours.

    python benchmarks/lowerings.py                            every network of the table below
    python benchmarks/lowerings.py --rows lstm --rounds 3     one network, sampled quickly

A lowering is worth its lines if it gains at least 5 % on some processor. Each variant runs in its
own process, and all variants of a network are measured in turn. Results are written to
`results/lowerings_VENDOR.json`.
"""

import importlib.util
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import tyro
from speed import HERE, MODES, ROOT, Worker, processor, vendor

# Network → what is left out in each variant: names of definitions, which are then computed as they
# stand, and of functions that are a platform's lowering.
VARIANTS: dict[str, tuple[str, ...]] = {
    "simple_cnn_8": ("convolve", "copies d_product", "max_pool", "random_bits"),
    "lenet": ("convolve", "side_by_side d_side_by_side", "avg_pool max_pool"),
    "simple_cnn_32": (
        "side_by_side d_side_by_side",
        "max_pool",
        "batch_norm",
        "_product_with_ones",
    ),
    "alexnet": ("d_product", "max_pool", "tiles d_tiles"),
    "resnet18": ("tiles d_tiles", "batch_norm", "_product_with_ones", "max_pool"),
    "resnet50": ("d_one_position",),
    "rnn": ("recur", "unroll"),
    "lstm": ("lstm_cell", "recur", "unroll", "_transposed_first"),
    "gru": ("gru_cell", "recur", "unroll"),
    "text_rnn": ("embed",),
    "encoder": ("layer_norm", "attention_scores", "add_bias", "_transposed_first", "random_bits"),
    "bert_base": ("gelu", "layer_norm", "_transposed_first"),
}


def leave_out(names: set[str]) -> None:
    """Loads flaxdl without some fast lowerings."""
    name = "flaxdl.ops.dispatch"
    spec = importlib.util.spec_from_file_location(name, ROOT / "flaxdl" / "ops" / "dispatch.py")
    assert spec
    assert spec.loader
    dispatch: Any = importlib.util.module_from_spec(spec)
    sys.modules[name] = dispatch
    spec.loader.exec_module(dispatch)
    accelerated, by_platform = dispatch.accelerated, dispatch.by_platform

    def some_accelerated(definition: Any, **fast: Any) -> Any:
        return definition if definition.__name__ in names else accelerated(definition, **fast)

    def by_some_platforms(default: Any, **lowerings: Any) -> Any:
        kept = {
            platform: lowering
            for platform, lowering in lowerings.items()
            if getattr(lowering, "func", lowering).__name__ not in names
        }
        return by_platform(default, **kept) if kept else default

    dispatch.accelerated, dispatch.by_platform = some_accelerated, by_some_platforms
    if "unroll" in names:
        importlib.import_module("flaxdl.ops.thresholds").UNROLLED_STEPS = 1
    if "random_bits" in names:
        import jax

        dropout = importlib.import_module("flaxdl.layers.dropout")
        dropout.random_bits = lambda key, shape: jax.random.bits(key, shape)


def gains(row: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Ratios of the variants of a network."""
    with tempfile.TemporaryDirectory() as folder:
        script = HERE / "speed_workers.py"
        first = Worker.start(script, "eager", row, folder)
        first.ask("check")  # writes the weights
        first.end()
        workers = {"": Worker.start(script, "ours", row, folder)}
        for variant in VARIANTS[row]:
            workers[variant] = Worker.start(
                HERE / "lowerings.py", "ours", row, folder, WITHOUT=variant
            )
        result: dict[str, Any] = {}
        for mode in MODES:
            for worker in workers.values():
                worker.ask(f"prepare {mode}")
            times: dict[str, list[float]] = {variant: [] for variant in workers}
            for _ in range(rounds):
                for variant, worker in workers.items():
                    times[variant].append(worker.ask(f"{mode} {seconds}")["ms"])
            result[mode] = {"ms": statistics.median(times[""])}
            for variant in VARIANTS[row]:
                ratios = [a / b for a, b in zip(times[variant], times[""], strict=True)]
                result[mode][variant] = {
                    "ratio": statistics.median(ratios),
                    "ratios": [min(ratios), max(ratios)],
                }
        for worker in workers.values():
            worker.end()
    return result


def main(
    rows: tuple[Literal[tuple(VARIANTS)], ...] = tuple(VARIANTS),
    rounds: int = 7,
    seconds: float = 0.3,
    out: Path = HERE / "results",
) -> None:
    """Measure and write the results of each network as soon as it is done.

    Args:
        rows: Networks to measure.
        rounds: Number of measurements per variant.
        seconds: Duration of each measurement.
        out: Folder of the results.
    """
    file = out / f"lowerings_{vendor()}.json"
    results = json.loads(file.read_text()) if file.exists() else {"rows": {}}
    results["machine"] = {"processor": processor()["model name"], "cores": os.cpu_count()}
    for row in rows:
        results["rows"][row] = gains(row, rounds, seconds)
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=2) + "\n")
        for mode in MODES:
            found = results["rows"][row][mode]
            shown = {variant: round(found[variant]["ratio"], 2) for variant in VARIANTS[row]}
            print(row, mode, shown, flush=True)


if __name__ == "__main__":
    if "WITHOUT" in os.environ:  # a process of a variant
        leave_out(set(os.environ["WITHOUT"].split()))
        import speed_workers

        speed_workers.main()
    else:
        tyro.cli(main)
