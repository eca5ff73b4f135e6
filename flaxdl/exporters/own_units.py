"""Export of regression models with outputs in the targets' own units."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.runs.last_layer import rescaled_outputs
from flaxdl.runs.restored import RestoredRun
from flaxdl.training.tasks import Regression


def exported_variables(run: RestoredRun) -> dict[str, Any]:
    """Returns the variables of a run; those of a regression model have outputs in own units.

    Raises:
        UserError: if the last layer of a regression model is not linear with a bias.
    """
    task = run.config.task
    if not isinstance(task, Regression):
        return run.variables
    return rescaled_outputs(run, run.variables, np.array(task.std), np.array(task.mean))


def exported_predict(run: RestoredRun) -> Callable[[Any, Mapping[str, Any]], Any]:
    """Returns the function from state and batch to outputs; those of a regression in own units.

    The conversion is a part of the function, and in float32: the last layer may compute in 16 bits.
    """
    task = run.config.task
    if not isinstance(task, Regression):
        return run.inference.predict

    def predict(state: Any, batch: Mapping[str, Any]) -> jax.Array:
        outputs = run.inference.predict(state, batch).astype(jnp.float32)
        return outputs * jnp.array(task.std, jnp.float32) + jnp.array(task.mean, jnp.float32)

    return predict
