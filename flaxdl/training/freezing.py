"""Parameters that stay as they are, and modules that then run as in inference.

A frozen parameter has no gradient, no optimizer state, no part in the norm that gradients are
clipped by, and no weight decay. A module whose parameters are all frozen runs in inference mode,
so that its BatchNorm statistics stay as well, and its dropout is off.
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
    """The parameters to train and the frozen ones: two trees, each with None for the other's.

    Args:
        params: a tree of parameters.
        patterns: which are frozen, over PyTorch's names, as in `("layer1.*",)`.

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
    """The inverse of `split`."""
    return jax.tree.map(
        lambda ours, theirs: theirs if ours is None else ours,
        trainable,
        frozen,
        is_leaf=lambda leaf: leaf is None,
    )


def inference_where_frozen(trainable: Any) -> AbstractContextManager[Any]:
    """Within it, modules without a trainable parameter are called with `train=False`.

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
