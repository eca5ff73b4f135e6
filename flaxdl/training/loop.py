"""The training loop: steps, and what is due between them.

Everything due after a step (a line of metrics, an evaluation, a checkpoint) is decided from the
step number and from what `metrics.jsonl` already holds. A run that was stopped anywhere therefore
resumes from its newest checkpoint as if nothing had happened.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from flaxdl.errors import SaveError
from flaxdl.training.diagnosis import describe_divergence
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.parallel import TrainStep, compile_train
from flaxdl.training.distributed.placement import create_on, in_turn, put_batch
from flaxdl.training.interruption import Interrupted
from flaxdl.training.metrics import MetricSums
from flaxdl.training.overfitting import is_learned
from flaxdl.training.protocols import TrainingRun, TrainingSession
from flaxdl.training.rewind import LossSpike, can_roll_back, last_due_before, roll_back
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.writers.metrics_file import MetricsFile
from flaxdl.training.writers.writer import Writer

_MOST_REWINDS = 3  # to one checkpoint


class Diverged(RuntimeError):
    """Loss or gradients were not finite for too many steps in a row, or rose again and again."""


@dataclass(frozen=True)
class Loop:
    """A run's loop over its steps; `run` trains from any state to the end."""

    setup: TrainingRun
    session: TrainingSession
    writers: Sequence[Writer] = ()

    def run(self, state: TrainState) -> TrainState:
        """Trains to the last step, or until the selection ends the run.

        Raises:
            Diverged: after `max_bad_steps` skipped steps in a row, or if the loss jumps again each
                time that the run is rolled back to a checkpoint.
            Interrupted: after a signal, once the state is saved.
            SaveError: if the last state could not be written.
        """
        times, checkpoints = self.session.times, self.session.checkpoints
        rewinds: Counter[int] = Counter()  # how often, by step of the checkpoint
        with times.spent("training"):
            while True:
                try:
                    state = self._train(state)
                    break
                except LossSpike as spike:
                    start = last_due_before(spike.step, self.setup.evaluate_every)
                    rewinds[start] += 1
                    if rewinds[start] > _MOST_REWINDS:
                        raise Diverged(
                            f"the loss has jumped once more at step {spike.step}, after the run "
                            f"went back to step {start} and on with other batches {_MOST_REWINDS} "
                            "times; a smaller --optimizer.learning-rate, or "
                            "--optimizer.clip-norm, often helps"
                        ) from None
                    state = roll_back(self.setup, self.session, spike, start)
            with times.spent("saving"):
                checkpoints.save(state)  # again, if it failed
                checkpoints.wait()
        return state

    def _train(self, state: TrainState) -> TrainState:
        setup, step = self.setup, int(state.step)
        train = self._compiled(setup.steps.behind(step), state)
        pace = _Pace()
        with closing(setup.fed_batches(step + int(state.skipped))) as batches:
            while True:
                if self._is_due(step, setup.log_every):
                    state = self._log_training(state, step, pace)
                if self._is_due(step, setup.evaluate_every):
                    jax.block_until_ready(state)
                    with pace.paused():
                        self._evaluate_and_save(state, step)
                if self._is_at_the_end(step):
                    return state
                self._stop_if_asked(state)
                for writer in self.writers:
                    writer.progress(step)
                # Before the thaw, since a run that is stopped while it waits saves what it has.
                count = self._steps_at_once(step)
                batch = self._next_together(batches, count, state)
                if step == setup.steps.thaw_step:
                    state = create_on(setup.placement, setup.steps.thaw, state)
                    train = self._compiled(setup.steps.thawed, state)
                state = in_turn(train(state, batch), setup.mesh)
                step, pace.steps = step + count, pace.steps + count

    def _compiled(self, steps: Steps, state: TrainState) -> TrainStep:
        return compile_train(
            steps,
            self.setup.mesh,
            self.setup.config.parallel,
            state,
            data=self.setup.data_on_devices,
            compiled=self.session.times.compiled,
        )

    def _is_due(self, step: int, interval: int) -> bool:
        return step > 0 and (step % interval == 0 or step >= self.setup.total_steps)

    def _is_at_the_end(self, step: int) -> bool:
        setup, metrics = self.setup, self.session.metrics
        return (
            step >= setup.total_steps  # beyond it if the run was made shorter
            or (self._is_due(step, setup.log_every) and _has_learned(setup, metrics, step))
            or (self._is_due(step, setup.evaluate_every) and _stops_early(setup, metrics, step))
        )

    def _log_training(self, state: TrainState, step: int, pace: "_Pace") -> TrainState:
        """Writes a line of training metrics, if it is not written yet, and empties the sums."""
        metrics, config = self.session.metrics, self.setup.config
        if metrics.has(step, "train"):
            pace.restart()
            return state
        jax.block_until_ready(state)  # steps that were handed out are not done
        values = state.sums.means() | {
            "learning_rate": float(state.learning_rate),
            "gradient_norm": float(state.gradient_norm),
        }
        if skipped := int(state.skipped):
            values["skipped_batches"] = skipped
        if pace.steps:
            values["examples_per_second"] = pace.steps * config.batch_size / pace.seconds
        self.write(step, "train", values)
        if state.has_diverged(config.max_bad_steps):
            raise Diverged(describe_divergence(self.setup, self.session, state))
        is_spike = config.rewind.is_spike(metrics.of_split("train"))
        if is_spike and can_roll_back(self.session.checkpoints, step, self.setup.evaluate_every):
            raise LossSpike(state)
        pace.restart()
        return state.replace(sums=state.sums.emptied())

    def _evaluate_and_save(self, state: TrainState, step: int) -> None:
        is_measured = self.session.metrics.has(step, "validation")
        if "validation" in self.setup.evaluated_splits and not is_measured:
            self.write(step, "validation", self.evaluate(state, "validation"))
        with self.session.times.spent("saving"):
            self._save(state)

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """The metrics of a whole split, every example counted once.

        Raises:
            Interrupted: after a signal, once the state is saved.
        """
        sums, mesh = state.sums.emptied(), self.setup.mesh
        batches = self.setup.evaluation_batches(split)
        with self.session.times.spent("evaluating"), closing(batches):
            while (batch := self._next(batches, state)) is not None:
                sums = in_turn(self._evaluate(state, sums, put_batch(batch, mesh)), mesh)
                self._stop_if_asked(state)
            return sums.means()

    @cached_property
    def _evaluate(self) -> Callable[..., MetricSums]:
        place = replicated(self.setup.mesh)
        evaluate = jax.jit(self.setup.steps.evaluate, donate_argnums=1, out_shardings=place)
        return self.session.times.compiled(evaluate)

    def test(self, state: TrainState) -> None:
        """Measures the test split, if there is one and it is not measured yet.

        Raises:
            Interrupted: after a signal, once the state is saved.
        """
        if "test" in self.setup.evaluated_splits and not self.session.metrics.of_split("test"):
            self.write(int(state.step), "test", self.evaluate(state, "test"))

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes a line of metrics to `metrics.jsonl` and to all writers."""
        line = self.session.metrics.append(step, split, values)
        for writer in self.writers:
            writer.line(line)

    def _steps_at_once(self, step: int) -> int:
        """The number of steps to dispatch: one if something is due before a call would end."""
        setup = self.setup
        after = step + setup.config.steps_per_call
        dues = [(step // n + 1) * n for n in (setup.log_every, setup.evaluate_every)]
        dues.append(setup.total_steps)
        if setup.steps.thaw_step is not None and setup.steps.thaw_step > step:
            dues.append(setup.steps.thaw_step)
        return setup.config.steps_per_call if after <= min(dues) else 1

    def _next(self, batches: Iterator[Any], state: TrainState) -> Any:
        """The next batch, None after the last; a signal does not wait for it."""
        with self.session.times.spent("waiting for data"):
            if jax.process_count() > 1:  # they have to stop at the same step
                return next(batches, None)
            try:
                with self.session.interruption.at_once():
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

    def _save(self, state: TrainState) -> None:
        due = int(state.step) // self.setup.evaluate_every * self.setup.evaluate_every
        may_roll_back = self.setup.config.rewind.factor is not None
        self.session.checkpoints.save(state, also_keep=due if may_roll_back else None)

    def _stop_if_asked(self, state: TrainState) -> None:
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
        # At the end the state may be the best one, which is older than the newest checkpoint.
        newest = max(self.session.checkpoints.steps(), default=0)
        if failure is None:
            where = f"saved at step {newest}; run the same command to resume"
        else:
            where = f"{failure}; the same command resumes from step {newest}"
        raise Interrupted(received, f"{received.name}: {where}")


class _Pace:
    """Steps and seconds since the last line of training metrics."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Starts counting from here."""
        self.steps, self._start = 0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time so far, without pauses."""
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time within does not count."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start


def has_ended(setup: TrainingRun, metrics: MetricsFile, step: int) -> bool:
    """Returns whether a run has ended at a step: the last, or an earlier one by its config."""
    return (
        step >= setup.total_steps
        or _has_learned(setup, metrics, step)
        or _stops_early(setup, metrics, step)
    )


def _has_learned(setup: TrainingRun, metrics: MetricsFile, step: int) -> bool:
    """Returns whether the few batches that were to be overfitted are learned."""
    batches = setup.config.overfit_batches
    return batches is not None and is_learned(metrics.of_split("train", until=step), batches)


def _stops_early(setup: TrainingRun, metrics: MetricsFile, step: int) -> bool:
    """Returns whether the selection ends the run; frozen parameters get time to learn first."""
    config, evaluations = setup.config, metrics.of_split("validation", until=step)
    return config.selection.is_over(evaluations, config.task, after=setup.steps.thaw_step or 0)
