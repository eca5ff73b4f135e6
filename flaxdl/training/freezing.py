"""Frozen parameters and modules.

A frozen parameter has no gradient, no optimizer state and no weight decay, and is left out of the
global gradient norm. A module whose parameters are all frozen runs in inference mode: its BatchNorm
statistics do not change and its dropout is off.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from flaxdl.errors import UserError
from flaxdl.weights.names import pattern_mask


def split(params: Mapping[str, Any], patterns: Sequence[str]) -> tuple[Any, Any]:
    """Returns the trainable and the frozen parameters: two trees, each None where the other is not.

    Args:
        params: a tree of parameters.
        patterns: patterns of PyTorch parameter names to freeze, such as `("layer1.*",)`.

    Raises:
        UserError: if a pattern matches nothing, or all parameters are frozen.
    """
    mask = pattern_mask(params, patterns, field="freeze")
    trainable = jax.tree.map(lambda leaf, is_frozen: None if is_frozen else leaf, params, mask)
    frozen = jax.tree.map(lambda leaf, is_frozen: leaf if is_frozen else None, params, mask)
    if not jax.tree.leaves(trainable):
        raise UserError(f"freeze {tuple(patterns)} leaves no parameter to train")
    return trainable, frozen


def merge(trainable: Any, frozen: Any) -> Any:
    """Returns the whole tree; the inverse of `split`."""
    return jax.tree.map(
        lambda ours, theirs: theirs if ours is None else ours,
        trainable,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )


def inference_where_frozen(trainable: Any) -> AbstractContextManager[Any]:
    """Returns a context in which modules without trainable parameters get `train=False`.

    Args:
        trainable: the first tree of `split`.
    """
    leaves = flatten_dict(trainable)
    modules = {path[:length] for path in leaves for length in range(1, len(path))}
    trained = {
        path[:length]
        for path, leaf in leaves.items()
        if leaf is not None
        for length in range(len(path))
    }
    frozen = modules - trained

    def call(
        method: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.module.path in frozen:
            signature = inspect.signature(context.orig_method)
            if "train" in signature.parameters:
                bound = signature.bind(*arguments, **keywords)
                bound.arguments["train"] = False
                return method(*bound.args, **bound.kwargs)
        return method(*arguments, **keywords)

    return nn.intercept_methods(call)
