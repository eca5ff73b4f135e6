"""Runs `train.py` with timers, and prints where the time was spent as a line of JSON.

python benchmarks/timed_run.py --config configs/digits_cnn.py --workdir DIR
"""

import time

START = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402

from flaxdl.cli import main  # noqa: E402
from flaxdl.training.loop import Loop  # noqa: E402
from flaxdl.training.writers.console import ConsoleWriter  # noqa: E402

IMPORTED = time.perf_counter()


def timed(arguments: list[str]) -> dict[str, float]:
    """Trains, and returns durations in seconds."""
    compiling: list[float] = []
    evaluating: list[float] = []
    first_steps: list[float] = []

    def listen(name: str, seconds: float, **_: Any) -> None:
        if name in (
            "/jax/core/compile/jaxpr_trace_duration",
            "/jax/core/compile/jaxpr_to_mlir_module_duration",
            "/jax/core/compile/backend_compile_duration",
        ):
            compiling.append(seconds)

    evaluate, progress = Loop.evaluate, ConsoleWriter.progress

    def timed_evaluate(loop: Loop, *args: Any) -> dict[str, float]:
        start = time.perf_counter()
        found = evaluate(loop, *args)
        evaluating.append(time.perf_counter() - start)
        return found

    def timed_progress(writer: ConsoleWriter, step: int) -> None:
        if step == 1:  # the first step is compiled and dispatched
            first_steps.append(time.perf_counter() - START)
        progress(writer, step)

    jax.monitoring.register_event_duration_secs_listener(listen)
    Loop.evaluate, ConsoleWriter.progress = timed_evaluate, timed_progress
    code = main(["train", *arguments], program="train.py")
    if code:
        sys.exit(code)
    return {
        "import_s": IMPORTED - START,
        "first_step_s": first_steps[0],
        "compile_s": sum(compiling),
        "evaluate_s": sum(evaluating),
        "total_s": time.perf_counter() - START,
    }


if __name__ == "__main__":
    print(json.dumps(timed(sys.argv[1:])))
