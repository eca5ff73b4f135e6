"""Errors for flags and model names that have been renamed since earlier versions."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flaxdl.errors import UserError
from flaxdl.runs.config_json import current_class, current_field


def check_flags(arguments: Sequence[str], cls: type, value: Any = None) -> None:
    """Checks that no flag has been renamed.

    Args:
        arguments: command-line arguments.
        cls: dataclass whose fields are flags.
        value: instance of `cls`, needed to check flags of nested fields.

    Raises:
        UserError: if flags have been renamed; the message contains their current names.
    """
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    renamed = [
        f"{flag} has been renamed to {current}"
        for flag in flags
        if (current := _current_flag(flag, cls, value)) != flag
    ]
    if renamed:
        raise UserError("\n".join(renamed))


def check_model(name: str) -> None:
    """Checks that a model has not been renamed.

    Raises:
        UserError: if the model has been renamed; the message contains its current name.
    """
    if (current := current_class(f"flaxdl.models.{name}")) is not None:
        raise UserError(f"the model {name} has been renamed to {current.rpartition('.')[2]}")


def _current_flag(flag: str, cls: type, value: Any) -> str:
    """Returns the current name of a flag: `flag` itself, unless a field has been renamed."""
    parts = flag.removeprefix("--").split(".")
    for number, part in enumerate(parts):
        negation = "no-" if part.startswith("no-") else ""
        earlier = part.removeprefix(negation).replace("-", "_")
        name = current_field(cls, earlier)
        if name is not None:
            parts[number] = negation + name.replace("_", "-")
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        known = (name or earlier) in {field.name for field in fields}
        value = getattr(value, name or earlier) if known else None
        cls = type(value)
    return "--" + ".".join(parts)
