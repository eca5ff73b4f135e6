"""The training loop: steps, and what is due between them.

Everything due after a step (a line of metrics, an evaluation, a checkpoint) is decided from the
step number and from what `metrics.jsonl` already holds. A run that was stopped anywhere therefore
goes on from its newest checkpoint as if nothing had happened.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import numpy as np

from flaxdl.errors import SaveError
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.diagnosis import first_not_finite
from flaxdl.training.distributed.parallel import Parallel, compile_train, look_up
from flaxdl.training.distributed.sharding import create_on, put_batch, replicated
from flaxdl.training.interruption import Interrupted, Interruption
from flaxdl.training.metrics import MetricsFile, MetricSums, Split
from flaxdl.training.overfitting import is_learned
from flaxdl.training.rewind import Rewind
from flaxdl.training.selection import Selection
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.times import Times

_LOGGER = logging.getLogger(__name__)
_MOST_REWINDS = 3  # to one checkpoint


class Diverged(RuntimeError):
    """Loss or gradients were not finite for too many steps in a row, or rose again and again."""


class _Spike(Exception):
    """The loss has jumped; the state that has seen it comes along."""

    def __init__(self, state: TrainState):
        self.step, self.skipped = int(state.step), int(state.skipped)


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
    parallel: Parallel
    """How a training step is computed on the devices of the mesh."""
    batch_size: int
    training_batches: Callable[[int], Generator[dict[str, np.ndarray]]]
    """This process's rows of the endless training batches from a number on."""
    data: Mapping[str, jax.Array] | None
    """The examples whose numbers these batches hold, or None where they hold the examples."""
    steps_per_call: int
    """Steps that are handed out at once, where nothing is due in between."""
    evaluation_batches: Callable[[Split], Generator[dict[str, np.ndarray]]]
    """This process's rows of batches with each example of a split once."""
    has_validation: bool
    log_every: int
    """Steps between two training lines."""
    evaluate_every: int
    """Steps between two evaluations, each followed by a checkpoint."""
    max_bad_steps: int
    """Steps in a row that may be skipped for non-finite numbers."""
    rewind: Rewind
    selection: Selection
    overfit_batches: int | None
    """The number of batches that are learned by heart, which ends the run; None for all data."""
    metrics: MetricsFile
    checkpoints: Checkpoints
    shapes: Callable[[int], TrainState]
    """The state after so many steps, as shapes with their places on the devices."""
    writers: Sequence[Writer]
    interruption: Interruption
    times: Times

    @cached_property
    def _evaluate(self) -> Callable[..., MetricSums]:
        place = replicated(self.mesh)
        evaluate = jax.jit(self.steps.evaluate, donate_argnums=1, out_shardings=place)
        return self.times.compiled(evaluate)

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last step, or until the selection ends the run.

        Raises:
            Diverged: after `max_bad_steps` skipped steps in a row, or if the loss jumps again each
                time that the run goes back to a checkpoint.
            Interrupted: after a signal, once the state is saved.
            SaveError: if the last state could not be written.
        """
        rewinds: Counter[int] = Counter()  # how often, by step of the checkpoint
        while True:
            try:
                state = self._train(state)
                break
            except _Spike as spike:
                start = self._due_before(spike.step)
                rewinds[start] += 1
                if rewinds[start] > _MOST_REWINDS:
                    raise Diverged(
                        f"the loss has jumped once more at step {spike.step}, after the run went "
                        f"back to step {start} and on with other batches {_MOST_REWINDS} times; "
                        "a smaller --optimizer.learning-rate, or --optimizer.clip-norm, often helps"
                    ) from None
                state = self._before(spike, start)
        with self.times.spent("saving"):
            self.checkpoints.save(state)  # again, if it failed
            self.checkpoints.wait()
        return state

    def _train(self, state: TrainState) -> TrainState:
        step, skipped = int(state.step), int(state.skipped)
        compile_for = partial(
            compile_train,
            mesh=self.mesh,
            parallel=self.parallel,
            data=self.data,
            compiled=self.times.compiled,
        )
        train = compile_for(self.steps.behind(step), state=state)
        batches = self.training_batches(step + skipped)
        window_start, window_steps = time.perf_counter(), 0
        try:
            while True:
                if self._is_due(step, self.log_every):
                    if not self.metrics.has(step, "train"):
                        jax.block_until_ready(state)  # steps that were handed out are not done
                        seconds = time.perf_counter() - window_start
                        self._log_training(state, step, window_steps, seconds)
                        state = state.replace(sums=state.sums.emptied())
                    window_start, window_steps = time.perf_counter(), 0
                    if self._is_learned():
                        break
                if self._is_due(step, self.evaluate_every):
                    jax.block_until_ready(state)
                    paused = time.perf_counter()
                    if self.has_validation and not self.metrics.has(step, "validation"):
                        self.write(step, "validation", self.evaluate(state, "validation"))
                    with self.times.spent("saving"):
                        self._save(state)
                    window_start += time.perf_counter() - paused
                    if self.is_over():
                        break
                if step >= self.steps.total_steps:  # beyond it if the run was made shorter
                    break
                self._stop_if_asked(state)
                for writer in self.writers:
                    writer.progress(step)
                # Before the thaw, since a run that is stopped while it waits saves what it has.
                count = self._steps_at_once(step)
                batch = self._next_together(batches, count, state)
                if step == self.steps.thaw_step:
                    state = create_on(self.mesh, self.steps.thaw, state)
                    train = compile_for(self.steps.thawed, state=state)
                state = self._in_turn(train(state, batch))
                step, window_steps = step + count, window_steps + count
        finally:
            batches.close()
        return state

    def _is_learned(self) -> bool:
        if self.overfit_batches is None:
            return False
        return is_learned(self.metrics.of_split("train"), self.overfit_batches)

    def is_over(self) -> bool:
        """Whether the selection ends the run; what was frozen gets its time to learn first."""
        lines = self.metrics.of_split("validation")
        return self.selection.is_over(lines, self.steps.task, after=self.steps.thaw_step or 0)

    def evaluate(self, state: TrainState, split: Split) -> dict[str, float]:
        """The metrics of a whole split, every example counted once.

        Raises:
            Interrupted: after a signal, once the state is saved.
        """
        sums = state.sums.emptied()
        with self.times.spent("evaluating"), closing(self.evaluation_batches(split)) as batches:
            while (batch := self._next(batches, state)) is not None:
                sums = self._in_turn(self._evaluate(state, sums, put_batch(batch, self.mesh)))
                self._stop_if_asked(state)
            return sums.means()

    def _in_turn(self, results: Any) -> Any:
        """Waits for the results on CPUs, where steps that overlap lose more than they gain.

        The CPU devices of one process share its threads: with two steps in flight, the devices of
        one can hold all threads while they wait for the others of their kind. And a step whose
        state is not there yet is left to another thread, which `compute_in_calling_thread` avoids.
        """
        if self.mesh.devices.flat[0].platform == "cpu":
            # All results of one device are there together, and one is looked at in less time.
            is_state_of_one = isinstance(results, TrainState) and self.mesh.size == 1
            jax.block_until_ready(results.step if is_state_of_one else results)
        return results

    def _steps_at_once(self, step: int) -> int:
        """How many steps to hand out: one where something is due before a call would end."""
        after = step + self.steps_per_call
        dues = [(step // n + 1) * n for n in (self.log_every, self.evaluate_every)]
        dues.append(self.steps.total_steps)
        if self.steps.thaw_step is not None and self.steps.thaw_step > step:
            dues.append(self.steps.thaw_step)
        return self.steps_per_call if after <= min(dues) else 1

    def _is_due(self, step: int, interval: int) -> bool:
        return step > 0 and (step % interval == 0 or step >= self.steps.total_steps)

    def _log_training(self, state: TrainState, step: int, steps: int, seconds: float) -> None:
        values = state.sums.means() | {
            "learning_rate": float(state.learning_rate),
            "gradient_norm": float(state.gradient_norm),
        }
        if skipped := int(state.skipped):
            values["skipped_batches"] = skipped
        if steps:
            values["examples_per_second"] = steps * self.batch_size / seconds
        self.write(step, "train", values)
        if state.has_diverged(self.max_bad_steps):
            raise Diverged(self._what_diverged(state, step))
        if self.rewind.is_spike(self.metrics.of_split("train")) and self._can_rewind(step):
            raise _Spike(state)

    def _due_before(self, step: int) -> int:
        """The last step before this one whose checkpoint was due, 0 if none was.

        Others, of runs that were stopped, are not gone back to: the run would come to another end
        than one that was never stopped.
        """
        return (step - 1) // self.evaluate_every * self.evaluate_every

    def _can_rewind(self, step: int) -> bool:
        self.checkpoints.settle()
        start = self._due_before(step)
        if start in self.checkpoints.steps():
            return True
        _LOGGER.warning(
            "the loss has jumped at step %d, but there is no checkpoint of step %d to go back to",
            step,
            start,
        )
        return False

    def _before(self, spike: _Spike, start: int) -> TrainState:
        """The state of the checkpoint of step `start`, to go on behind the batches of the spike."""
        _LOGGER.warning(
            "the loss has jumped at step %d: going back to step %d, and on without the batches "
            "in between",
            spike.step,
            start,
        )
        self.checkpoints.remove_after(start)
        self.metrics.rewind(start, keep_test=False)
        state = self.checkpoints.restore(self.shapes(start), start)
        skipped = np.int32(spike.skipped + spike.step - start)
        return state.replace(skipped=jax.device_put(skipped, state.skipped.sharding))

    def _save(self, state: TrainState) -> None:
        due = int(state.step) // self.evaluate_every * self.evaluate_every
        self.checkpoints.save(state, also_keep=None if self.rewind.factor is None else due)

    def _what_diverged(self, state: TrainState, step: int) -> str:
        where = ""
        if jax.process_count() == 1:
            with closing(self.training_batches(step - 1 + int(state.skipped))) as batches:
                batch = look_up(self.data, put_batch(next(batches), self.mesh))
            before = state.replace(step=state.step - 1)  # of skipped steps nothing else is left
            where = first_not_finite(self.steps.behind(step), before, batch)
            where = f"In the last of them, the first such value is in {where}. "
        bad_steps = int(state.bad_steps)
        losses = [line["loss"] for line in self.metrics.of_split("train")][-10:]
        shown = ", ".join("not finite" if loss is None else f"{loss:.4g}" for loss in losses)
        saved = max(self.checkpoints.steps(), default=None)
        checkpoint = (
            "There is no checkpoint yet"
            if saved is None
            else f"The last good checkpoint is that of step {saved}"
        )
        return (
            f"loss, gradients or statistics were not finite for {bad_steps} steps in a row, from "
            f"step {step - bad_steps + 1} to {step}. {where}Losses up to there: {shown}. "
            f"{checkpoint}; a smaller --optimizer.learning-rate, or --optimizer.clip-norm, often "
            "helps"
        )

    def write(self, step: int, split: Split, values: dict[str, float]) -> None:
        """Writes a line of metrics to `metrics.jsonl` and to all writers."""
        line = self.metrics.append(step, split, values)
        for writer in self.writers:
            writer.line(line)

    def _next(self, batches: Iterator[Any], state: TrainState) -> Any:
        """The next batch, None behind the last; a signal does not wait for it."""
        with self.times.spent("waiting for data"):
            if jax.process_count() > 1:  # they have to stop at the same step
                return next(batches, None)
            try:
                with self.interruption.at_once():
                    return next(batches, None)
            except Interrupted:
                self._stop_if_asked(state)
                raise

    def _next_together(self, batches: Iterator[Any], count: int, state: TrainState) -> Any:
        """The next batch, or so many of them as arrays [count, B, ...]."""
        if count == 1:
            return self._next(batches, state)
        several = [self._next(batches, state) for _ in range(count)]
        return {name: np.stack([batch[name] for batch in several]) for name in several[0]}

    def _stop_if_asked(self, state: TrainState) -> None:
        received = self.interruption.poll()
        if received is None:
            return
        self._save(state)
        failure = None
        try:
            self.checkpoints.wait()
            self.metrics.finish()
        except SaveError as error:
            failure = error
        # At the end the state may be the best one, which is older than the newest checkpoint.
        newest = max(self.checkpoints.steps(), default=0)
        if failure is None:
            where = f"saved at step {newest}; run the same command to resume"
        else:
            where = f"{failure}; the same command resumes from step {newest}"
        raise Interrupted(received, f"{received.name}: {where}")
