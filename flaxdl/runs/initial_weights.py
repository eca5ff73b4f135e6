"""The state that a run starts from: parameters drawn at random, or the weights of `config.init`."""

from typing import Any

import jax

from flaxdl.errors import UserError
from flaxdl.runs.restored import RestoredRun, restore
from flaxdl.runs.setup import Setup
from flaxdl.runs.workdir import Workdir
from flaxdl.training.distributed.mesh import replicated
from flaxdl.training.distributed.placement import create_on, put_like
from flaxdl.training.state import TrainState
from flaxdl.weights import load_weights, state_dict


def initial_state(setup: Setup) -> TrainState:
    """The state before the first step, with the weights that `config.init` asks for.

    Raises:
        UserError: if the weights cannot be found or read, or do not fit the model.
    """
    state = create_on(setup.placement, setup.create_state)
    init = setup.config.init
    if init.weights is None:
        return state
    source: Any = init.weights  # a published name is no path
    if Workdir(source).has_checkpoints:
        try:
            source = state_dict(_whole(restore(source)))
        except UserError as error:
            raise UserError(
                f"init.weights: the run {init.weights} cannot be read: {error}. "
                "A file that `python -m flaxdl export` made of it will do as well"
            ) from error
    variables = {"params": state.params, **state.model_state}
    ignore = getattr(setup.config.model, "ignored_keys", ())
    loaded = load_weights(variables, source, omit=init.omit, ignore=ignore)
    loaded = put_like(variables, loaded)
    return state.replace(params=loaded.pop("params"), model_state=loaded)


def _whole(run: RestoredRun) -> Any:
    """The variables of a run, whole in every process."""
    if jax.process_count() == 1:
        return run.variables
    return jax.jit(lambda variables: variables, out_shardings=replicated(run.mesh))(run.variables)
