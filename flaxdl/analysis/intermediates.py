"""What the modules of a model put out while it is called in inference mode, taken or changed."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

Variables = Mapping[str, Any]
Outputs = dict[str, Any]
"""What modules put out, by their names joined by dots, in the order of calls."""


def apply_changing(
    model: nn.Module,
    variables: Variables,
    change: Callable[[nn.Module, Any], Any],
    *arguments: Any,
    **others: Any,
) -> Any:
    """Calls the model; what a module puts out becomes what `change` makes of it."""

    def call(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        outputs = method(*arguments, **keywords)
        return change(context.module, outputs) if context.method_name == "__call__" else outputs

    with nn.intercept_methods(call):
        return model.apply(variables, *arguments, train=False, **others)


def collect(
    model: nn.Module,
    variables: Variables,
    take: Callable[[nn.Module, Any], Any],
    *arguments: Any,
    **others: Any,
) -> Outputs:
    """What `take` makes of each module and what it puts out, where that is not None."""

    def run(variables: Variables, *arguments: Any, **others: Any) -> Outputs:
        found: Outputs = {}

        def keep(module: nn.Module, outputs: Any) -> Any:
            taken = take(module, outputs)
            if taken is not None:
                found[name_of(module)] = taken
            return outputs

        apply_changing(model, variables, keep, *arguments, **others)
        return found

    return jit_in_order(run)(variables, *arguments, **others)


def jit_in_order(function: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """The function under `jit`, which alone would sort the names."""
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
    """A module's path in the model, joined by dots."""
    return ".".join(module.path)
