"""Change of the units of a model's outputs, in the weights of its last layer.

K: outputs of the model.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxdl.errors import UserError
from flaxdl.runs.plan import Plan
from flaxdl.runs.restored import RestoredRun


def rescaled_outputs(
    run: RestoredRun, variables: Mapping[str, Any], scale: np.ndarray, shift: np.ndarray
) -> dict[str, Any]:
    """Returns variables with which the outputs of a model are `scale * output + shift`.

    The last layer must be linear with a bias; its kernel [I, K] and bias [K] are changed.

    Args:
        run: run of the model.
        variables: its variables, unsharded.
        scale: factor of each output, float64[K].
        shift: shift of each output, float64[K].

    Raises:
        UserError: if the model does not end with such a layer.
    """
    path = ("params", *last_layer(run, run.state))
    leaves: dict[Any, Any] = flatten_dict(dict(variables))
    changed = {"kernel": lambda kernel: kernel * scale, "bias": lambda bias: bias * scale + shift}
    for name, change in changed.items():
        leaf = leaves[*path, name]
        leaves[*path, name] = change(np.asarray(leaf, np.float64)).astype(leaf.dtype)
    return unflatten_dict(leaves)


def last_layer(plan: Plan, state: Any) -> tuple[str, ...]:
    """Returns the path of the linear layer whose outputs are those of the model.

    Args:
        plan: plan of a run.
        state: its state, or the shapes of the state.

    Raises:
        UserError: if the outputs of the model are not those of a linear layer with a bias.
    """
    calls: list[tuple[tuple[str, ...], Any]] = []

    def record(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        outputs = method(*arguments, **keywords)
        if context.method_name == "__call__":
            calls.append((context.module.path, outputs))
        return outputs

    def predict(state: Any, batch: Any) -> Any:
        return plan.steps.predict(state, batch)

    with nn.intercept_methods(record):
        jax.eval_shape(predict, state, dict(plan.examples))
    leaves: dict[Any, Any] = flatten_dict(state.params)
    *_, (_, outputs) = calls  # of the model itself
    for path, of_module in calls:
        if of_module is outputs and {(*path, "kernel"), (*path, "bias")} <= leaves.keys():
            return path
    raise UserError(
        f"{type(plan.config.model).__name__} must return the outputs of a linear layer with a "
        "bias, so that these can be converted to other units"
    )
