"""Initial state of a run: random parameters, or the weights of `config.init`."""

from typing import Any

import jax
import numpy as np

from flaxdl.errors import UserError
from flaxdl.runs.last_layer import rescaled_outputs
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.runs.setup import Setup
from flaxdl.runs.workdir import Workdir
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.placement import create_on, put_like
from flaxdl.training.state import TrainState
from flaxdl.training.tasks import Regression, Task
from flaxdl.weights import load_weights, state_dict
from flaxdl.weights.names import leaves_by_key, matches_any

_MOST_NAMES = 6  # randomly initialized parameters that are listed


def initial_state(setup: Setup) -> TrainState:
    """Creates the state before the first step, with the weights of `config.init`.

    Raises:
        UserError: if the weights cannot be found or read, or do not match the model.
    """
    return described_initial_state(setup)[0]


def described_initial_state(setup: Setup) -> tuple[TrainState, str | None]:
    """Returns the initial state and a description of its weights (None if they are random).

    An example is `weights from runs/small, step 18; initialized: fc.weight`.

    Raises:
        UserError: if the weights cannot be found or read, or do not match the model.
    """
    state = create_on(setup.placement, setup.create_state)
    init = setup.config.init
    if init.weights is None:
        return state, None
    source: Any = init.weights  # a name or a path
    text = f"weights from {init.weights}"
    if Workdir(source).has_checkpoints:
        try:
            run = restore(source)
            text += f", step {int(run.state.step):,}"
            source = state_dict(_in_units_of(setup.config.task, run, _unsharded_variables(run)))
        except UserError as error:
            raise UserError(
                f"init.weights: the run {init.weights} cannot be read: {error}. "
                "A file exported from it with `python -m flaxdl export` works as well"
            ) from error
    variables = {"params": state.params, **state.model_state}
    ignore = getattr(setup.config.model, "ignored_keys", ())
    loaded = load_weights(variables, source, omit=init.omit, ignore=ignore)
    loaded = put_like(variables, loaded)
    names = [name for name in leaves_by_key(variables) if matches_any(name, init.omit)]
    if names:
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        text += f"; initialized: {', '.join(names[:_MOST_NAMES])}{more}"
    params, average = loaded.pop("params"), state.average
    if average is not None:
        average = create_on(setup.placement, setup.steps.ema.start, params, loaded)
    return state.replace(params=params, model_state=loaded, average=average), text


def _in_units_of(task: Task, run: RestoredRun, variables: Any) -> Any:
    """Returns the variables of a regression model with outputs in the units of another regression.

    Each run standardizes its targets with its own statistics. The initial model thus predicts the
    same values as the one that it is initialized from.
    """
    other = run.config.task
    if not (isinstance(task, Regression) and isinstance(other, Regression)):
        return variables
    if (task.mean, task.std) == (other.mean, other.std):
        return variables
    if task.num_outputs(None) != other.num_outputs(None):  # the last layers differ in size, too
        return variables
    mean, std, other_mean, other_std = (
        np.array(numbers) for numbers in (task.mean, task.std, other.mean, other.std)
    )
    return rescaled_outputs(run, variables, other_std / std, (other_mean - mean) / std)


def _unsharded_variables(run: RestoredRun) -> Any:
    """Returns the variables of a run; every process holds a full copy."""
    if jax.process_count() == 1:
        return run.variables
    return jax.jit(lambda variables: variables, out_shardings=replicated(run.mesh))(run.variables)
