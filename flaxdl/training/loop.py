"""The training loop: steps, and what is due between them.

Everything due after a step (a line of metrics, an evaluation, a checkpoint) is decided from the
step number and from what `metrics.jsonl` already holds. A run that was stopped anywhere therefore
goes on from its newest checkpoint as if nothing had happened.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax
import numpy as np

from flaxdl.training.checkpoints import Checkpoints
from flaxdl.training.interruption import Interrupted, Interruption
from flaxdl.training.metrics import MetricsFile, MetricSums, Split
from flaxdl.training.selection import Selection
from flaxdl.training.sharding import put_batch, replicated
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps


class Diverged(RuntimeError):
    """Loss or gradients were not finite for too many steps in a row."""


class Writer(Protocol):
    """Somewhere metrics go besides `metrics.jsonl`: the console, TensorBoard."""

    def progress(self, step: int) -> None:
        """A step was started; called often, so cheap."""

    def line(self, line: dict[str, Any]) -> None:
        """A line of metrics was written."""

    def close(self) -> None:
        """The run is over."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A run's loop over its steps; `run` trains from any state to the end."""

    steps: Steps
    mesh: jax.sharding.Mesh
    batch_size: int
    training_batches: Callable[[int], Generator[dict[str, np.ndarray]]]
    """The endless training batches from a step on."""
    evaluation_batches: Callable[[Split], Iterator[dict[str, np.ndarray]]]
    """Each example of a split once."""
    has_validation: bool
    log_every: int
    """Steps between two training lines."""
    evaluate_every: int
    """Steps between two evaluations, each followed by a checkpoint."""
    max_bad_steps: int
    """Steps in a row that may be skipped for non-finite numbers."""
    selection: Selection
    metrics: MetricsFile
    checkpoints: Checkpoints
    writers: Sequence[Writer]
    interruption: Interruption

    @cached_property
    def _train(self) -> Callable[..., TrainState]:
        return jax.jit(self.steps.train, donate_argnums=0, out_shardings=replicated(self.mesh))

    @cached_property
    def _train_thawed(self) -> Callable[..., TrainState]:
        train = self.steps.thawed.train
        return jax.jit(train, donate_argnums=0, out_shardings=replicated(self.mesh))

    @cached_property
    def _evaluate(self) -> Callable[..., MetricSums]:
        return jax.jit(self.steps.evaluate, donate_argnums=1, out_shardings=replicated(self.mesh))

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last step, or until the selection ends the run.

        Raises:
            Diverged: after `max_bad_steps` skipped steps in a row.
            Interrupted: after a signal, once the state is saved.
        """
        step = int(state.step)
        batches = self.training_batches(step)
        window_start, window_steps = time.perf_counter(), 0
        try:
            while True:
                if self._is_due(step, self.log_every):
                    if not self.metrics.has(step, "train"):
                        seconds = time.perf_counter() - window_start
                        self._log_training(state, step, window_steps, seconds)
                        state = state.replace(sums=state.sums.emptied())
                    window_start, window_steps = time.perf_counter(), 0
                if self._is_due(step, self.evaluate_every):
                    paused = time.perf_counter()
                    if self.has_validation and not self.metrics.has(step, "validation"):
                        self.write(step, "validation", self.evaluate(state, "validation"))
                    self.checkpoints.save(state)
                    window_start += time.perf_counter() - paused
                    if self.is_over():
                        break
                if step == self.steps.total_steps:
                    break
                self._stop_if_asked(state)
                for writer in self.writers:
                    writer.progress(step)
                if step == self.steps.thaw_step:
                    thaw = jax.jit(self.steps.thaw, out_shardings=replicated(self.mesh))
                    state = thaw(state)
                is_thawed = self.steps.is_thawed_at(step)
                train = self._train_thawed if is_thawed else self._train
                batch = put_batch(next(batches), self.mesh)
                state = self._in_turn(train(state, batch))
                step, window_steps = step + 1, window_steps + 1
        finally:
            batches.close()
        self.checkpoints.wait()
        return state

    def is_over(self) -> bool:
        """Whether the selection ends the run; what was frozen gets its time to learn first."""
        lines = self.metrics.of_split("validation")
        return self.selection.is_over(lines, after=self.steps.thaw_step or 0)

    def evaluate(self, state: TrainState, split: Split) -> dict[str, float]:
        """The metrics of a whole split, every example counted once.

        Raises:
            Interrupted: after a signal, once the state is saved.
        """
        sums = state.sums.emptied()
        for batch in self.evaluation_batches(split):
            self._stop_if_asked(state)
            sums = self._in_turn(self._evaluate(state, sums, put_batch(batch, self.mesh)))
        return sums.means()

    def _in_turn(self, results: Any) -> Any:
        """Waits for the results where steps must not overlap.

        The CPU devices of one process share its threads: with two steps in flight, the devices of
        one can hold all threads while they wait for the others of their kind.
        """
        if self.mesh.size > 1 and self.mesh.devices.flat[0].platform == "cpu":
            jax.block_until_ready(results)
        return results

    def _is_due(self, step: int, interval: int) -> bool:
        return step > 0 and (step % interval == 0 or step == self.steps.total_steps)

    def _log_training(self, state: TrainState, step: int, steps: int, seconds: float) -> None:
        bad_steps = int(state.bad_steps)
        values = state.sums.means() | {
            "learning_rate": float(state.learning_rate),
            "gradient_norm": float(state.gradient_norm),
        }
        if steps:
            values["examples_per_second"] = steps * self.batch_size / seconds
        self.write(step, "train", values)
        if bad_steps >= self.max_bad_steps:
            losses = [line["loss"] for line in self.metrics.of_split("train")][-10:]
            raise Diverged(
                f"loss or gradients were not finite for {bad_steps} steps in a row, the last of "
                f"them step {step}; losses before: {losses}. The last good checkpoint is that of "
                f"step {max(self.checkpoints.steps(), default=None)}; a smaller learning rate or "
                "optimizer.clip_norm often helps"
            )

    def write(self, step: int, split: Split, values: dict[str, float]) -> None:
        """Writes a line of metrics to `metrics.jsonl` and to all writers."""
        line = self.metrics.append(step, split, values)
        for writer in self.writers:
            writer.line(line)

    def _stop_if_asked(self, state: TrainState) -> None:
        received = self.interruption.received
        if received is not None:
            self.checkpoints.save(state)
            self.checkpoints.wait()
            where = f"saved at step {int(state.step)}; the same line again goes on from there"
            raise Interrupted(received, f"{received.name}: {where}")
