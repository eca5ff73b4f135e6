"""Regression runs: checks before training, and predictions for new inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from flaxdl.config import Config
from flaxdl.data import Splits
from flaxdl.data.numeric_labels import check_numeric_targets
from flaxdl.errors import UserError
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.tasks import Regression
from flaxdl.training.tasks.regression import MIXING_ERROR


@dataclass(frozen=True)
class Estimate:
    """Numbers that a regression model predicts for one input."""

    item: str
    """File name or text."""
    values: dict[str, float]
    """Predicted values in the targets' own units, by target name."""


def check_regression(config: Config, splits: Splits) -> None:
    """Checks that labels are numbers, and that examples are not mixed.

    Raises:
        UserError: if labels are not floating-point numbers, or if the transform mixes examples.
    """
    mixing = [
        f"{name} {getattr(config.transform, name):g}"
        for name in ("mixup_alpha", "cutmix_alpha")
        if getattr(config.transform, name, 0)
    ]
    if mixing:
        raise UserError(f"{MIXING_ERROR}, got {' and '.join(mixing)}")
    check_numeric_targets(splits)


def make_estimator(
    run: RestoredRun,
) -> Callable[[Sequence[str], Mapping[str, np.ndarray], int], list[Estimate]]:
    """Returns a function from items, a padded batch and the number of the first item to estimates.

    Args:
        run: restored run of the task `Regression`.
    """
    task = run.config.task
    assert isinstance(task, Regression)

    @partial(jax.jit, out_shardings=replicated(run.mesh))
    def outputs_of(state: Any, batch: Any) -> jax.Array:
        return run.inference.predict(state, batch)

    def estimate(
        items: Sequence[str], batch: Mapping[str, np.ndarray], first: int
    ) -> list[Estimate]:
        outputs = outputs_of(run.state, run.put(batch))
        values = task.in_own_units(np.asarray(outputs))[: len(items)]
        return [
            Estimate(item, dict(zip(task.target_names, row, strict=True)))
            for item, row in zip(items, values.tolist(), strict=True)
        ]

    return estimate
