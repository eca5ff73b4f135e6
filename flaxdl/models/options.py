"""Options that a model passes to its submodules."""

from dataclasses import fields
from typing import Any

import flax.linen as nn


def shared_options(model: nn.Module, part: type[nn.Module]) -> dict[str, Any]:
    """Returns the fields that `model` and `part` have in common, as keyword arguments of `part`."""
    names = {f.name for f in fields(part)} & {f.name for f in fields(model)} - {"parent", "name"}
    return {name: getattr(model, name) for name in names}
