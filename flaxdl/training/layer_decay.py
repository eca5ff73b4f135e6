"""Layer-wise learning-rate decay: smaller learning rates for earlier layers in fine-tuning.

Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", 2018, call it
discriminative fine-tuning.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]


def learning_rate_factors(create: Callable[[], Any], decay: float) -> Any:
    """Returns each parameter's learning-rate multiplier: `decay` to the power of its depth.

    Layers are ordered as the model calls them; the last one has depth zero. A module that PyTorch
    numbers, such as `layer1.0` or `encoder.layer.3`, is one layer, including its submodules. A
    normalization outside of these belongs to the layer before it. Other modules without a number
    form one layer per parent module, such as `bert.embeddings`.

    Args:
        create: a function that initializes the model's variables; it is only traced for shapes.
        decay: factor from each layer to the one before it.

    Returns:
        A tree of floats like the parameters.
    """
    calls: list[Path] = []

    def record(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        calls.append(context.module.path)
        return method(*arguments, **keywords)

    with nn.intercept_methods(record):
        leaves = flatten_dict(jax.eval_shape(create)["params"])
    order = {path: number for number, path in reversed(list(enumerate(calls)))}  # the first call
    owners = sorted({path[:-1] for path in leaves}, key=lambda path: order.get(path, len(calls)))
    norms = {path[:-1] for path in leaves if path[-1] == "scale"}

    layers: list[str] = []
    layer_of: dict[Path, str] = {}
    for owner in owners:
        name = _layer(owner, layers, is_norm=owner in norms)
        if name not in layers:
            layers.append(name)
        layer_of[owner] = name
    return unflatten_dict(
        {path: decay ** (len(layers) - 1 - layers.index(layer_of[path[:-1]])) for path in leaves}
    )


def _layer(owner: Path, before: Sequence[str], *, is_norm: bool) -> str:
    """Returns the name of a module's layer, given the layers of the modules before it."""
    words = ".".join(owner).split(".")
    numbers = [index for index, word in enumerate(words) if word.isdigit()]
    if is_norm and before and (not numbers or numbers[0] == len(words) - 1):
        return before[-1]  # such as `bn1`, `encoder.norm`, or `features.1` itself
    if numbers:
        return ".".join(words[: numbers[0] + 1])
    parent = ".".join(words[:-1] or words)
    return next((name for name in before if parent.startswith(f"{name}.")), parent)
