"""Options that a model passes on to its parts."""

from dataclasses import fields
from typing import Any

import flax.linen as nn


def shared_options(model: nn.Module, part: type[nn.Module]) -> dict[str, Any]:
    """Returns the fields that a model shares with a part, as keyword arguments of the part."""
    names = {f.name for f in fields(part)} & {f.name for f in fields(model)} - {"parent", "name"}
    return {name: getattr(model, name) for name in names}
