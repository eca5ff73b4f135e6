"""Serialization of configs to JSON, with public class names that survive refactoring.

A class is stored under the name that users import, such as `flaxdl.data.Tfds`, not under the module
that defines it. The tables below list names stored by earlier versions.
"""

import dataclasses
import importlib
import json
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

from flaxdl.checks import did_you_mean
from flaxdl.config import python_number, setting_names
from flaxdl.errors import UserError

_PUBLIC_PACKAGES = ("flaxdl", "flaxdl.data", "flaxdl.layers", "flaxdl.models", "flaxdl.training")

# Package → its modules that were part of class names until November 2026.
_EARLIER_MODULES = {
    "flaxdl": ("config",),
    "flaxdl.data": (
        "arrays",
        "dates",
        "documents",
        "image_folder",
        "images",
        "source",
        "text",
        "text_pairs",
        "text_table",
        "tfds",
        "transforms",
    ),
    "flaxdl.layers": (
        "attention",
        "convolution",
        "dropout",
        "linear",
        "normalization",
        "positions",
        "recurrent",
        "residual",
        "transformer",
    ),
    "flaxdl.models": ("alexnet", "bert", "cnn", "lenet", "resnet", "rnn", "transformer", "vgg"),
    "flaxdl.training": ("optimizers", "rewind", "selection", "tasks"),
}
_EARLIER_PREFIXES = {
    f"{package}.{module}": package
    for package, modules in _EARLIER_MODULES.items()
    for module in modules
}
# Earlier name of a class → current name.
_EARLIER_CLASSES: dict[str, str] = {
    "flaxdl.training.Rewind": "flaxdl.training.SpikeRecovery",
}
# Class, earlier name of a field → current name of the field.
_EARLIER_FIELDS: dict[tuple[str, str], str] = {
    ("flaxdl.Config", "rewind"): "spike_recovery",
    ("flaxdl.data.ImageRows", "shorter_side"): "resize",
    ("flaxdl.data.ImageRows", "smallest_area"): "min_scale",
    ("flaxdl.data.Images", "shorter_side"): "resize",
    ("flaxdl.data.Images", "smallest_area"): "min_scale",
    ("flaxdl.data.Text", "padded_lengths"): "bucket_lengths",
}
# Class, removed field → the value that had no effect; runs with this value can still be read.
_REMOVED_FIELDS: dict[tuple[str, str], Any] = {
    ("flaxdl.layers.BatchNorm", "per_device"): False,
    ("flaxdl.layers.MultiHeadAttention", "dropout"): 0.0,
}


def to_json(value: Any, name: str = "") -> Any:
    """Converts a config, or any value in it, to JSON-compatible values.

    A dataclass becomes a dict of its class name and its fields.

    Args:
        value: the config or value.
        name: name of the value in error messages, such as `model.activation`.

    Raises:
        UserError: if a value cannot be stored as JSON, or is NaN; the message names the field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        prefix = f"{name}." if name else ""
        fields = {f: to_json(getattr(value, f), f"{prefix}{f}") for f in setting_names(value)}
        return {"class": class_name(type(value)), **fields}
    if isinstance(value, (tuple, list)):
        return [to_json(item, f"{name}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, dict):
        return {str(key): to_json(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    value = python_number(value)
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{name or 'a value of a config'} must be a number, got nan")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(
        f"{name}{': ' if name else ''}a config can hold numbers, strings, tuples and dataclasses, "
        f"got {value!r:.200} (a {type(value).__name__})"
    )


def from_json(value: Any) -> Any:
    """Converts JSON back to a config: the inverse of `to_json`, for public classes of flaxdl.

    Raises:
        UserError: if a class is not a public class of flaxdl, or if it lacks a stored field. A
            config with classes defined by the user must be read from the config file of the run.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" not in value:
        return {key: from_json(item) for key, item in value.items()}
    fields = {name: from_json(item) for name, item in value.items() if name != "class"}
    name = value["class"]
    found = _public_classes().get(name) if isinstance(name, str) else None
    if found is None:
        raise UserError(
            f"config.json refers to {name!r}, which is not a public class of flaxdl; "
            "pass the config file of the run with --config"
        )
    known = [field.name for field in dataclasses.fields(found)]
    for name in fields:
        if name not in known:
            raise UserError(
                f"config.json sets the field {name!r}, which {found.__name__} does not have"
                f"{did_you_mean(name, known)}"
            )
    return found(**fields)


def upgraded(value: Any, like: Any = None) -> Any:
    """Converts the JSON of a config from any version to the format of the current version.

    Earlier names are replaced, and removed fields are dropped if they had no effect. Fields added
    to a class since then get the value that matches the behavior of earlier runs: the value
    `earlier` in the field's metadata or, without one, the default of the field.

    Args:
        value: the JSON of a config, or of any value in it.
        like: config used to look up classes defined by the user.
    """
    if isinstance(value, list):
        items = like if isinstance(like, (list, tuple)) and len(like) == len(value) else value
        return [upgraded(item, other) for item, other in zip(value, items, strict=True)]
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("class"), str):
        return {name: upgraded(item, _part(like, str(name))) for name, item in value.items()}
    cls = _current_name(value["class"], like)
    record: dict[str, Any] = {"class": cls}
    for earlier_name, item in value.items():
        if earlier_name != "class":
            name = _EARLIER_FIELDS.get((cls, str(earlier_name)), str(earlier_name))
            if (cls, name) in _REMOVED_FIELDS and item == _REMOVED_FIELDS[cls, name]:
                continue
            record[name] = upgraded(item, _part(like, name))
    is_own = dataclasses.is_dataclass(like) and class_name(type(like)) == cls
    found: Any = type(like) if is_own else _public_classes().get(cls)
    if found is None:  # not a dataclass, or one defined by the user
        return record
    names = setting_names(found)
    for added in dataclasses.fields(found):
        if added.name in names and added.name not in record:
            record |= _earlier_value(added)
    return record


def _current_name(name: str, like: Any) -> str:
    """Returns the current name of a class from its name in any version.

    A class that was defined in the main program is recognized if `like` is an instance of it.
    """
    if name == f"__main__.{type(like).__qualname__}":
        return class_name(type(like))
    module, _, own = name.rpartition(".")
    found = f"{_EARLIER_PREFIXES[module]}.{own}" if module in _EARLIER_PREFIXES else name
    found = _EARLIER_CLASSES.get(found, found)
    return found if found in _public_classes() else name


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _earlier_value(field: dataclasses.Field) -> dict[str, Any]:
    """Returns {name: value} for runs that began before the field existed; {} without a value."""
    if "earlier" in field.metadata:
        return {field.name: to_json(field.metadata["earlier"])}
    if field.default is not dataclasses.MISSING:
        return {field.name: to_json(field.default)}
    if field.default_factory is not dataclasses.MISSING:
        return {field.name: to_json(field.default_factory())}
    return {}


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Lists the differences between two JSON values.

    Each entry is a line such as `optimizer.learning_rate: 0.001 → 0.0003`.
    """
    if isinstance(old, dict) and isinstance(new, dict) and old.get("class") == new.get("class"):
        return [
            line
            for key in [*old, *(key for key in new if key not in old)]
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name}: {json.dumps(old)} → {json.dumps(new)}"]


def class_name(kind: type) -> str:
    """Returns the public name of a flaxdl class, or module and name of any other class.

    For a class in the main program, the module is the name of the program's file, as for a class
    in a config file.
    """
    for name, found in _public_classes().items():
        if found is kind:
            return name
    module = kind.__module__
    if module == "__main__" and (program := getattr(sys.modules[module], "__file__", None)):
        module = Path(program).stem
    return f"{module}.{kind.__qualname__}"


@cache
def _public_classes() -> dict[str, type]:
    """Returns the dataclasses exported by flaxdl's packages, by public name."""
    return {
        f"{package}.{name}": value
        for package in _PUBLIC_PACKAGES
        for name in importlib.import_module(package).__all__
        if dataclasses.is_dataclass(value := getattr(importlib.import_module(package), name))
        and isinstance(value, type)
    }


def current_field(cls: type, name: str) -> str | None:
    """Returns the current name of a renamed field; None if `name` is not an earlier name."""
    return _EARLIER_FIELDS.get((class_name(cls), name))


def current_class(name: str) -> str | None:
    """Returns the current name of a renamed class; None if `name` is not an earlier name."""
    return _EARLIER_CLASSES.get(name)
