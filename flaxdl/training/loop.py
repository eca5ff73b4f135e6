"""The training loop.

Everything due after a step (a line of metrics, an evaluation, a checkpoint) depends only on the
step number and on the contents of `metrics.jsonl`. An interrupted run therefore resumes from its
newest checkpoint and ends with the same results as an uninterrupted run.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from flaxdl.errors import SaveError
from flaxdl.training.diagnosis import describe_divergence
from flaxdl.training.distributed.parallel import TrainStep, compile_train
from flaxdl.training.distributed.placement import block_on_cpu, create_on, put_batch
from flaxdl.training.evaluation import Evaluator
from flaxdl.training.interruption import Interrupted
from flaxdl.training.overfitting import has_overfit
from flaxdl.training.protocols import TrainingRun, TrainingSession
from flaxdl.training.spike_recovery import LossSpike, can_roll_back, last_due_before, roll_back
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.tasks import Task
from flaxdl.training.writers.metrics_file import MetricsFile
from flaxdl.training.writers.writer import Writer

_MAX_ROLLBACKS = 3  # per checkpoint


class Diverged(RuntimeError):
    """Raised when loss or gradients are not finite for too long, or the loss spikes repeatedly."""


@dataclass(frozen=True)
class Loop:
    """The training loop of a run; `run` trains from a given state to the end."""

    setup: TrainingRun
    session: TrainingSession
    writers: Sequence[Writer] = ()

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last step, or until early stopping.

        Raises:
            Diverged: after `max_bad_steps` consecutive skipped steps, or if the loss spikes again
                after three rollbacks to the same checkpoint.
            Interrupted: after a signal, once the state has been saved.
            SaveError: if the last checkpoint cannot be written.
        """
        times, checkpoints = self.session.times, self.session.checkpoints
        rollbacks: Counter[int] = Counter()  # by step of the checkpoint
        with times.measure("training"):
            while True:
                try:
                    state = self._train(state)
                    break
                except LossSpike as spike:
                    start = last_due_before(spike.step, self.setup.evaluate_every)
                    rollbacks[start] += 1
                    if rollbacks[start] > _MAX_ROLLBACKS:
                        raise Diverged(
                            f"loss spiked again at step {spike.step} after {_MAX_ROLLBACKS} "
                            f"rollbacks to step {start}; a smaller --optimizer.learning-rate, or "
                            "--optimizer.clip-norm, often helps"
                        ) from None
                    state = roll_back(self.setup, self.session, spike, start)
            with times.measure("saving"):
                checkpoints.save(state)  # does nothing unless the last save failed
                checkpoints.wait()
        return state

    def _train(self, state: TrainState) -> TrainState:
        setup, step = self.setup, int(state.step)
        train = self._compile(setup.steps.for_state_at(step), state)
        timer = _StepTimer()
        with closing(setup.fed_batches(step + int(state.skipped))) as batches:
            while True:
                if self._is_due(step, setup.log_every):
                    state = self._log_training(state, step, timer)
                if self._is_due(step, setup.evaluate_every):
                    jax.block_until_ready(state)
                    with timer.paused():
                        self._evaluate_and_save(state, step)
                if self._is_finished(step):
                    return state
                self._stop_if_interrupted(state)
                for writer in self.writers:
                    writer.progress(step)
                # Before unfreezing: if interrupted while waiting, the run saves the current state.
                count = self._steps_to_dispatch(step)
                batch = self._next_batches(batches, count, state)
                if step == setup.steps.unfreeze_step:
                    state = create_on(setup.placement, setup.steps.unfreeze, state)
                    train = self._compile(setup.steps.unfrozen, state)
                state = block_on_cpu(train(state, batch), setup.mesh)
                step, timer.steps = step + count, timer.steps + count

    def _compile(self, steps: Steps, state: TrainState) -> TrainStep:
        return compile_train(
            steps,
            self.setup.mesh,
            self.setup.config.parallel,
            state,
            data=self.setup.data_on_devices,
            wrap=self.session.times.measure_compilation,
        )

    def _is_due(self, step: int, interval: int) -> bool:
        return step > 0 and (step % interval == 0 or step >= self.setup.total_steps)

    def _is_finished(self, step: int) -> bool:
        setup, metrics = self.setup, self.session.metrics
        return (
            step >= setup.total_steps  # greater if the run was shortened
            or (self._is_due(step, setup.log_every) and _has_overfit(setup, metrics, step))
            or (self._is_due(step, setup.evaluate_every) and _stops_early(setup, metrics, step))
        )

    def _log_training(self, state: TrainState, step: int, timer: "_StepTimer") -> TrainState:
        """Writes a line of training metrics and resets the sums, unless the line exists already."""
        metrics, config = self.session.metrics, self.setup.config
        if metrics.has(step, "train"):
            timer.restart()
            return state
        jax.block_until_ready(state)  # dispatched steps may still be running
        values = config.task.finish(state.sums.means()) | {
            "learning_rate": float(state.learning_rate),
            "gradient_norm": float(state.gradient_norm),
        }
        if skipped := int(state.skipped):
            values["skipped_batches"] = skipped
        if timer.steps:
            values["examples_per_second"] = timer.steps * config.batch_size / timer.seconds
        self.write(step, "train", values)
        if state.has_diverged(config.max_bad_steps):
            raise Diverged(describe_divergence(self.setup, self.session, state))
        is_spike = config.spike_recovery.is_spike(metrics.of_split("train"))
        if is_spike and can_roll_back(self.session.checkpoints, step, self.setup.evaluate_every):
            raise LossSpike(state)
        timer.restart()
        return state.replace(sums=state.sums.zeros_like())

    def _evaluate_and_save(self, state: TrainState, step: int) -> None:
        is_measured = self.session.metrics.has(step, "validation")
        if "validation" in self.setup.evaluated_splits and not is_measured:
            self.write(step, "validation", self.evaluate(state, "validation"))
        with self.session.times.measure("saving"):
            self._save(state)

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """Returns the metrics of a whole split, with every example counted once.

        Raises:
            Interrupted: after a signal, once the state has been saved.
        """
        with self._placed(state, split) as batches:
            return self._evaluator.measure(state, batches)

    def tuned_task(self, state: TrainState) -> Task:
        """Returns the task tuned on the validation split with a state, see `Task.tuned`.

        Raises:
            Interrupted: after a signal, once the state has been saved.
        """
        with self._placed(state, "validation") as batches:
            return self._evaluator.tuned_task(state, batches)

    @contextmanager
    def _placed(self, state: TrainState, split: str) -> Iterator[Iterator[Any]]:
        """Context manager that yields the batches of a split on the devices."""
        batches = self.setup.evaluation_batches(split)

        def placed_batches() -> Iterator[Any]:
            while (batch := self._next(batches, state)) is not None:
                yield put_batch(batch, self.setup.mesh)
                self._stop_if_interrupted(state)

        with self.session.times.measure("evaluating"), closing(batches):
            yield placed_batches()

    @cached_property
    def _evaluator(self) -> Evaluator:
        setup, wrap = self.setup, self.session.times.measure_compilation
        return Evaluator(setup.steps, setup.mesh, setup.classes, wrap)

    def test(self, state: TrainState) -> None:
        """Evaluates the test split, if there is one and it has not been evaluated yet.

        Raises:
            Interrupted: after a signal, once the state has been saved.
        """
        if "test" in self.setup.evaluated_splits and not self.session.metrics.of_split("test"):
            self.write(int(state.step), "test", self.evaluate(state, "test"))

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes a line of metrics to `metrics.jsonl` and to all writers."""
        line = self.session.metrics.append(step, split, values)
        for writer in self.writers:
            writer.line(line)

    def _steps_to_dispatch(self, step: int) -> int:
        """Returns the number of steps to dispatch in one call.

        This is `steps_per_call`, or 1 if a log line, an evaluation, unfreezing or the end of the
        run is due before the last of these steps.
        """
        setup = self.setup
        after = step + setup.config.steps_per_call
        due_steps = [(step // n + 1) * n for n in (setup.log_every, setup.evaluate_every)]
        due_steps.append(setup.total_steps)
        if setup.steps.unfreeze_step is not None and setup.steps.unfreeze_step > step:
            due_steps.append(setup.steps.unfreeze_step)
        return setup.config.steps_per_call if after <= min(due_steps) else 1

    def _next(self, batches: Iterator[Any], state: TrainState) -> Any:
        """Returns the next batch, or None after the last one; a signal interrupts waiting."""
        with self.session.times.measure("waiting for data"):
            if jax.process_count() > 1:  # all processes must stop at the same step
                return next(batches, None)
            try:
                with self.session.interruption.immediate():
                    return next(batches, None)
            except Interrupted:
                self._stop_if_interrupted(state)
                raise

    def _next_batches(self, batches: Iterator[Any], count: int, state: TrainState) -> Any:
        """Returns the next batch or, if `count` is not 1, `count` batches stacked along axis 0."""
        if count == 1:
            return self._next(batches, state)
        several = [self._next(batches, state) for _ in range(count)]
        return {name: np.stack([batch[name] for batch in several]) for name in several[0]}

    def _save(self, state: TrainState) -> None:
        due = int(state.step) // self.setup.evaluate_every * self.setup.evaluate_every
        may_roll_back = self.setup.config.spike_recovery.factor is not None
        self.session.checkpoints.save(state, also_keep=due if may_roll_back else None)

    def _stop_if_interrupted(self, state: TrainState) -> None:
        received = self.session.interruption.poll()
        if received is None:
            return
        self._save(state)
        failure = None
        try:
            self.session.checkpoints.wait()
            self.session.metrics.finish()
        except SaveError as error:
            failure = error
        # After training, the state may be the best one, older than the newest checkpoint.
        newest = max(self.session.checkpoints.steps(), default=0)
        if failure is None:
            where = f"checkpoint saved at step {newest}; run the same command to resume"
        else:
            where = f"{failure}; the same command resumes from step {newest}"
        raise Interrupted(received, f"{received.name}: {where}")


class _StepTimer:
    """Steps and seconds since the last line of training metrics, used to compute throughput."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Resets steps and seconds to zero."""
        self.steps, self._start = 0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds elapsed, without pauses."""
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context manager that excludes the time spent in it."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start


def has_ended(setup: TrainingRun, metrics: MetricsFile, step: int) -> bool:
    """Returns whether a run ends at a step: the last step, or earlier by a stopping criterion."""
    return (
        step >= setup.total_steps
        or _has_overfit(setup, metrics, step)
        or _stops_early(setup, metrics, step)
    )


def _has_overfit(setup: TrainingRun, metrics: MetricsFile, step: int) -> bool:
    """Returns whether `overfit_batches` is set and its batches are overfitted."""
    batches = setup.config.overfit_batches
    return batches is not None and has_overfit(metrics.of_split("train", until=step), batches)


def _stops_early(setup: TrainingRun, metrics: MetricsFile, step: int) -> bool:
    """Returns whether early stopping applies, ignoring evaluations with frozen parameters."""
    config, evaluations = setup.config, metrics.of_split("validation", until=step)
    return config.selection.should_stop(
        evaluations, config.task, after=setup.steps.unfreeze_step or 0
    )
