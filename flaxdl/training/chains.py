"""The chain of optax transformations that turns gradients into updates, and its state.

Two of its stages are defined here: clipping with PyTorch's 1e-6, and learning rates by layer.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxdl.errors import UserError
from flaxdl.ops.reductions import global_norm
from flaxdl.tracebacks import user_frames
from flaxdl.training.layer_decay import learning_rate_factors

# States of optax's transformations that train other parameters than should be evaluated.
_OTHER_PARAMETERS = {
    "LookaheadState": "lookahead",
    "SAMState": "sam",
    "ScheduleFreeState": "schedule_free",
}


class ChainState(NamedTuple):
    """State of an optimizer's chain; the stages other than these two have none."""

    moments: optax.OptState
    """State of the stage that computes the direction, such as Adam's moments."""
    schedule: optax.ScaleByScheduleState
    """Number of updates so far, from which the schedule computes the learning rate."""


def chain(
    clip: optax.GradientTransformation,
    direction: optax.GradientTransformation,
    layers: optax.GradientTransformation,
    learning_rate: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns `optax.chain` of the stages of an optimizer, with a `ChainState`."""
    stages = optax.chain(clip, direction, layers, learning_rate)
    empty = optax.EmptyState()

    def compact(states: Any) -> ChainState:
        _, moments, _, schedule = states
        return ChainState(moments, schedule)

    def init(params: optax.Params) -> ChainState:
        return compact(stages.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        states = (empty, state.moments, empty, state.schedule)
        updates, states = stages.update(updates, states, params, **extra)
        return updates, compact(states)

    return optax.GradientTransformationExtraArgs(init, update)


def clip_by_norm(max_norm: float | None) -> optax.GradientTransformation:
    """Returns a transformation that scales gradients down to a maximum global norm.

    Like `torch.nn.utils.clip_grad_norm_`, and unlike `optax.clip_by_global_norm`, it adds 1e-6 to
    the norm before dividing. Its `update` takes the norm as `gradient_norm`, if it is known.

    Args:
        max_norm: the maximum; None for no clipping.
    """
    if max_norm is None:
        return optax.identity()

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        gradient_norm: jax.Array | None = None,
        **_: Any,
    ) -> tuple[Any, Any]:
        norm = global_norm(updates) if gradient_norm is None else gradient_norm
        factor = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_layer(create: Callable[[], Any] | None, decay: float) -> optax.GradientTransformation:
    """Returns a transformation that multiplies updates by `learning_rate_factors(create, decay)`.

    Raises:
        UserError: in its `update`, if the factors are needed and `create` is None.
    """
    if decay == 1:
        return optax.identity()

    def scale(updates: Any, params: Any) -> Any:
        if create is None:
            raise UserError(
                f"optimizer.layer_decay={decay} requires the order of the model's layers; pass "
                "`create`, a function that initializes the model's variables"
            )
        factors = learning_rate_factors(create, decay)
        return jax.tree.map(
            lambda update, factor: None if update is None else update * factor,
            updates,
            factors,
            is_leaf=lambda update: update is None,  # a frozen parameter
        )

    return optax.stateless(scale)


def moments_of(state: optax.OptState) -> Any:
    """Returns the state of a chain without the schedule's count, which `TrainState.updates` has."""
    return state.moments if isinstance(state, ChainState) else state


def with_count(
    transformation: optax.GradientTransformation,
    params: optax.Params,
    moments: Any,
    updates: jax.Array,
) -> optax.OptState:
    """Returns the state of a chain: the inverse of `moments_of`.

    Args:
        transformation: the chain, or any other transformation.
        params: the parameters.
        moments: the result of `moments_of`.
        updates: number of updates so far.
    """
    if isinstance(jax.eval_shape(transformation.init, params), ChainState):
        return ChainState(moments, optax.ScaleByScheduleState(updates))
    return moments


def restarted(initial: optax.OptState, old: optax.OptState) -> optax.OptState:
    """Returns an initial state in which optax's schedules continue from their counts in another.

    Args:
        initial: the initial state of a transformation.
        old: a state of the same transformation, possibly for fewer parameters.
    """
    old_nodes = dict(jax.tree.leaves_with_path(old, is_leaf=_is_schedule))
    return jax.tree.map_with_path(
        lambda path, node: old_nodes[path] if _is_schedule(node) else node,
        initial,
        is_leaf=_is_schedule,
    )


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)


def check_transformation(
    name: str, transformation: optax.GradientTransformationExtraArgs, params: optax.Params
) -> None:
    """Checks, by shape inference only, that the training step can use a transformation.

    Args:
        name: the optimizer that builds it, for messages.
        transformation: the transformation.
        params: the parameters or their shapes, with None for frozen ones.

    Raises:
        UserError: if it fails for these parameters, needs more than gradients and parameters,
            trains other parameters than should be evaluated, or changes the type of its state.
    """
    state = _shapes_of(name, transformation.init, params)
    for node in jax.tree.leaves(state, is_leaf=_trains_other_parameters):
        if _trains_other_parameters(node):
            raise UserError(
                f"optimizer {name}: optax's {_OTHER_PARAMETERS[type(node).__name__]} trains other "
                "parameters than those that should be evaluated, which is not supported"
            )
    update = partial(transformation.update, gradient_norm=1.0)
    before, after = _types(state), _types(_shapes_of(name, update, params, state, params)[1])
    differing = [path for path in before | after if before.get(path) != after.get(path)]
    if differing:
        path = differing[0]
        raise UserError(
            f"optimizer {name}: the update must not change shapes or dtypes of the state, but it "
            f"changes {path} from {before.get(path)} to {after.get(path)}"
        )


def _shapes_of(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the shapes of the results of `init` or `update`."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        if isinstance(error, UserError) or user_frames(error):
            raise
        needed = re.search(r"missing \d+ required .*?: (.*)", str(error))
        if needed is None:
            raise UserError(
                f"optimizer {name}: the transformation fails for the model's parameters: "
                f"{type(error).__name__}: {error}"
            ) from error
        raise UserError(
            f"optimizer {name}: the update needs {needed[1]}, but the training step passes only "
            "gradients and parameters; line searches, Polyak step sizes and other transformations "
            "that use the loss are not supported"
        ) from error


def _trains_other_parameters(node: Any) -> bool:
    return type(node).__name__ in _OTHER_PARAMETERS


def _types(state: optax.OptState) -> dict[str, str]:
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}
