"""Captures or replaces module outputs while a model is called in inference mode."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

Variables = Mapping[str, Any]
Outputs = dict[str, Any]
"""Module outputs by dotted module name, in the order of the calls."""


def intervene(
    model: nn.Module,
    variables: Variables,
    change: Callable[[nn.Module, Any], Any],
    *arguments: Any,
    **others: Any,
) -> Any:
    """Calls the model with the output of each module replaced by `change(module, output)`.

    Args:
        model: model to call.
        variables: variables of the model.
        change: callable that takes a module and its output and returns the new output.
        *arguments: positional arguments of the model.
        **others: keyword arguments of the model.
    """

    def call(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        outputs = method(*arguments, **keywords)
        return change(context.module, outputs) if context.method_name == "__call__" else outputs

    with nn.intercept_methods(call):
        return model.apply(variables, *arguments, train=False, **others)


def capture(
    model: nn.Module,
    variables: Variables,
    select: Callable[[nn.Module, Any], Any],
    *arguments: Any,
    **others: Any,
) -> Outputs:
    """Calls the model and returns `select(module, output)` for each module, unless it is None.

    Args:
        model: model to call.
        variables: variables of the model.
        select: callable that takes a module and its output and returns the value to capture.
        *arguments: positional arguments of the model.
        **others: keyword arguments of the model.
    """

    def run(variables: Variables, *arguments: Any, **others: Any) -> Outputs:
        found: Outputs = {}

        def record(module: nn.Module, outputs: Any) -> Any:
            selected = select(module, outputs)
            if selected is not None:
                found[name_of(module)] = selected
            return outputs

        intervene(model, variables, record, *arguments, **others)
        return found

    return jit_in_order(run)(variables, *arguments, **others)


def jit_in_order(function: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """Compiles a function with `jax.jit` and restores the order of its outputs; jit sorts them."""
    names: list[str] = []

    @jax.jit
    def run(*arguments: Any, **others: Any) -> Outputs:
        outputs = function(*arguments, **others)
        names[:] = outputs
        return outputs

    def call(*arguments: Any, **others: Any) -> Outputs:
        outputs = run(*arguments, **others)
        return {name: outputs[name] for name in names}

    return call


def name_of(module: nn.Module) -> str:
    """Returns the path of a module in the model, joined by dots."""
    return ".".join(module.path)
