"""Initial state of a run: random parameters, or the weights of `config.init`."""

import logging
from typing import Any

import jax
import numpy as np

from flaxdl.data.class_folders import format_names
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path
from flaxdl.filesystem.remote_urls import is_url
from flaxdl.runs.last_layer import last_layer, rescaled_outputs
from flaxdl.runs.remote_workdir import has_run
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.runs.setup import Setup
from flaxdl.runs.workdir import Workdir
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.placement import create_on, put_like
from flaxdl.training.state import TrainState
from flaxdl.training.tasks import Regression
from flaxdl.weights import load_weights, state_dict
from flaxdl.weights.names import leaves_by_key, matches_any, pytorch_key

_LOGGER = logging.getLogger(__name__)
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
    if _is_run(init.weights):
        try:
            run = restore(init.weights)
            restored = _unsharded_variables(run)
        except UserError as error:
            raise UserError(
                f"init.weights: the run {init.weights} cannot be read: {error}. "
                "A file exported from it with `python -m flaxdl export` works as well"
            ) from error
        text += f", step {int(run.state.step):,}"
        own, is_converted = _in_units_of(setup, run, restored)
        source = state_dict(own)
        if is_converted:
            text += "; outputs converted to the mean and standard deviation of this training split"
    elif is_url(init.weights):
        source = input_path(init.weights)
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


def _is_run(weights: str) -> bool:
    """Returns True if weights are those of a run: a workdir with a checkpoint, not a file."""
    return has_run(weights) if is_url(weights) else Workdir(weights).has_checkpoints


def _in_units_of(setup: Setup, run: RestoredRun, variables: Any) -> tuple[Any, bool]:
    """Converts the outputs of a regression model to the units of a regression of equal targets.

    Each run standardizes its targets with its own statistics. The initial model thus predicts the
    same values as the one that it is initialized from.

    Returns:
        The variables, and True if they are converted. Those of other tasks or targets, and of a
        last layer that is omitted, are unchanged.

    Raises:
        UserError: if the last layer is not linear with a bias.
    """
    task, other, init = setup.config.task, run.config.task, setup.config.init
    if not (isinstance(task, Regression) and isinstance(other, Regression)):
        return variables, False
    if (task.mean, task.std) == (other.mean, other.std):
        return variables, False
    if task.num_outputs(None) != other.num_outputs(None):  # the last layers differ in size, too
        return variables, False
    try:
        kernel = pytorch_key((*last_layer(run, run.state), "kernel"))
    except UserError as error:
        raise UserError(
            f"init.weights: {error}; without conversion, this run needs the statistics of "
            f"{init.weights}, task.mean {other.mean} and task.std {other.std}"
        ) from error
    if matches_any(kernel, init.omit):
        return variables, False
    if task.target_names != other.target_names:
        _LOGGER.warning(
            "init.weights: the targets of %s are %s, those of this run %s, so its outputs are not "
            "converted to their units",
            init.weights, format_names(other.target_names), format_names(task.target_names),
        )  # fmt: skip
        return variables, False
    mean, std, other_mean, other_std = (
        np.array(numbers) for numbers in (task.mean, task.std, other.mean, other.std)
    )
    return rescaled_outputs(run, variables, other_std / std, (other_mean - mean) / std), True


def _unsharded_variables(run: RestoredRun) -> Any:
    """Returns the variables of a run; every process holds a full copy."""
    if jax.process_count() == 1:
        return run.variables
    return jax.jit(lambda variables: variables, out_shardings=replicated(run.mesh))(run.variables)
