"""Facts about the data of a run, as stored in its `config.json`.

The facts are a dict with the following keys; runs of version 0.1.0 have no `splits`.

- `classes`: list of class names, or None.
- `splits`: dict from split name to the number of `examples` and their `fingerprint`.
- `steps_per_epoch`: number of training steps per epoch.
- `example`: dict from field name to the `shape` and `dtype` of one example.
- `task`: dict from name to value of the fields of the task that were fitted to the training split,
  such as class weights; absent if there are none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.class_folders import to_nfc

_SHOWN_CLASSES = 10


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lists differing facts as lines such as `classes: cat, dog → dog, zebra`.

    Only facts recorded in both are compared, since earlier versions recorded fewer.
    """
    lines = _class_differences(old["classes"], new["classes"])
    old_splits, new_splits = old.get("splits"), new.get("splits")
    if old_splits is None or new_splits is None:
        if old["steps_per_epoch"] != new["steps_per_epoch"]:
            lines.append(f"steps per epoch: {old['steps_per_epoch']} → {new['steps_per_epoch']}")
        if old_splits is None:
            lines += _differences_of_rules(new_splits or {})
    else:
        for name in {**old_splits, **new_splits}:
            lines += _split_differences(name, old_splits.get(name), new_splits.get(name))
    for name in {**old["example"], **new["example"]}:
        shapes = [_shape(facts["example"].get(name)) for facts in (old, new)]
        if shapes[0] != shapes[1]:
            lines.append(f"shape of {name}: {shapes[0]} → {shapes[1]}")
    return lines


def _shape(array: Mapping[str, Any] | None) -> str:
    return "none" if array is None else f"{array['dtype']}{list(array['shape'])}"


def _class_differences(old: Sequence[str] | None, new: Sequence[str] | None) -> list[str]:
    if old == new:
        return []
    if old is not None and new is not None and list(map(to_nfc, old)) == list(new):
        return []  # earlier versions did not convert folder names to NFC
    if old is None or new is None or len(old) + len(new) <= 2 * _SHOWN_CLASSES:
        shown = ["none" if names is None else _some(names) for names in (old, new)]
        return [f"classes: {shown[0]} → {shown[1]}"]
    gone, added = sorted(set(old) - set(new)), sorted(set(new) - set(old))
    details = [
        *([f"missing: {_some(gone)}"] if gone else []),
        *([f"new: {_some(added)}"] if added else []),
    ]
    order = "in a different order"
    return [f"classes: {len(old):,} → {len(new):,} ({'; '.join(details) or order})"]


def _split_differences(
    name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None
) -> list[str]:
    sizes = ["none" if split is None else f"{split['examples']:,}" for split in (old, new)]
    if old is None or new is None or old["examples"] != new["examples"]:
        return [f"{name} examples: {sizes[0]} → {sizes[1]}"]
    if not fingerprint.may_be_equal(old["fingerprint"], new["fingerprint"]):
        return [f"{name} examples: content differs, same number ({sizes[0]})"]
    return []


def _differences_of_rules(splits: Mapping[str, Any]) -> list[str]:
    """Lists splits with another number of examples under the rules of version 0.1.0.

    That version recorded no counts, so they are recomputed with its rules.
    """
    return [
        f"{name} examples: {split['examples_in_0_1_0']:,} by the rules of flaxdl 0.1.0 → "
        f"{split['examples']:,}"
        for name, split in splits.items()
        if "examples_in_0_1_0" in split
    ]


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN_CLASSES:,} more"] if len(names) > _SHOWN_CLASSES else []
    return ", ".join([*names[:_SHOWN_CLASSES], *more])


def find_error(data: Mapping[str, Any]) -> str | None:
    """Describes the first invalid fact, or returns None if all are valid."""
    classes, example = data.get("classes", ""), data.get("example")
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    ):
        return f"classes must be a list of names or null, got {classes!r:.80}"
    steps = data.get("steps_per_epoch")
    if type(steps) is not int or steps < 1:
        return f"steps_per_epoch must be a positive integer, got {steps!r:.80}"
    if not (isinstance(example, dict) and all(map(_is_array, example.values()))):
        return f"example must have a shape and a dtype for each array, got {example!r:.80}"
    if not isinstance(data.get("task", {}), dict):
        return f"task must be an object, got {data['task']!r:.80}"
    splits = data.get("splits", {})
    if not (isinstance(splits, dict) and all(map(_is_split, splits.values()))):
        return f"splits must have a number of examples and a fingerprint, got {splits!r:.80}"
    return None


def _is_array(value: Any) -> bool:
    try:
        dtype, shape = value["dtype"], value["shape"]
        is_dtype = dtype == "bfloat16" or (
            isinstance(dtype, str)
            and np.dtype(dtype).kind in "biuf"
            and np.dtype(dtype).itemsize <= 8
        )
        return is_dtype and all(type(size) is int and size >= 0 for size in shape)
    except Exception:  # NumPy parses the text and may raise any error
        return False


def _is_split(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("examples")) is int
        and "fingerprint" in value
        and isinstance(value["fingerprint"], str | None)
    )
