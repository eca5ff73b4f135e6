"""Evaluation of a training state: the metrics of a whole split."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from flaxdl.errors import UserError
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.placement import block_on_cpu
from flaxdl.training.metrics import EvaluationSums
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.tasks import Task


@dataclass(frozen=True)
class Evaluator:
    """Computes the metrics of states over batches, with a single compilation per shape."""

    steps: Steps
    mesh: Mesh
    classes: Sequence[str] | None
    """Names of the classes, or of the columns of the labels; None if unnamed."""
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function
    """Applied to the compiled function, such as to measure its compilation."""

    def measure(self, state: TrainState, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """Computes the metrics of a state over batches, counting every example once.

        Args:
            state: training state, on the devices of the mesh.
            batches: batches, on the same devices.

        Raises:
            UserError: if the task does not return the metrics that its `evaluation_names` promises.
        """
        sums: EvaluationSums | None = None
        collected: list[dict[str, np.ndarray]] = []
        for batch in batches:
            if sums is None:
                sums = jax.device_put(self._zeros(state, batch), replicated(self.mesh))
            sums, rows = block_on_cpu(self._evaluate(state, sums, batch), self.mesh)
            if rows:
                collected.append(_counted(rows))
        task = self.steps.task
        if sums is None:  # an empty split
            means = task.finish(state.sums.zeros_like().means())
            return {**means, **dict.fromkeys(task.evaluation_names(), math.nan)}
        totals, rows = jax.device_get(sums.totals), _concatenated(collected)
        more = task.evaluation_metrics(totals, rows, self.classes)
        _check_promised(task, more)
        return {**task.finish(sums.metrics.means()), **more}

    def tuned_task(self, state: TrainState, batches: Iterable[Mapping[str, Any]]) -> Task:
        """Returns the task tuned to the predictions of a state, see `Task.tuned`.

        Args:
            state: training state, on the devices of the mesh.
            batches: batches of the validation split, on the same devices.
        """
        compute = self.wrap(jax.jit(self.steps.tuning_rows, out_shardings=replicated(self.mesh)))
        collected = [_counted(block_on_cpu(compute(state, batch), self.mesh)) for batch in batches]
        if not collected:  # an empty split
            return self.steps.task
        return self.steps.task.tuned(_concatenated(collected), self.classes)

    def _zeros(self, state: TrainState, batch: Mapping[str, Any]) -> EvaluationSums:
        shapes = {}
        if type(self.steps.task).evaluation_totals is not Task.evaluation_totals:
            shapes = jax.eval_shape(self.steps.evaluation_totals, state, batch)
        totals: Any = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
        return EvaluationSums(metrics=state.sums.zeros_like(), totals=totals)

    @cached_property
    def _evaluate(self) -> Callable[..., tuple[EvaluationSums, dict[str, jax.Array]]]:
        place = replicated(self.mesh)
        return self.wrap(jax.jit(self.steps.evaluate, donate_argnums=1, out_shardings=place))


def _check_promised(task: Task, found: Mapping[str, float]) -> None:
    """Checks that a task has returned the metrics of its `evaluation_names`."""
    names = task.evaluation_names()
    if set(found) != set(names):
        kind = type(task).__name__
        raise UserError(
            f"{kind}.evaluation_metrics must return the metrics that {kind}.evaluation_names lists "
            f"({', '.join(names) or 'none'}), got {', '.join(map(str, found)) or 'none'}"
        )


def _counted(rows: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Returns the rows of examples that are neither padding nor unreadable."""
    found = jax.device_get(rows)
    counts = found.pop("weight") > 0
    return {name: array[counts] for name, array in found.items()}


def _concatenated(collected: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = collected[0] if collected else ()
    return {name: np.concatenate([one[name] for one in collected]) for name in names}
