"""Strict loading of PyTorch weights into Flax variables, and export to a file."""

import fnmatch
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from flaxdl.errors import UserError
from flaxdl.weights.architectures import detect_architecture
from flaxdl.weights.files import read_weights, write_weights
from flaxdl.weights.hub import locate
from flaxdl.weights.names import (
    TIED_KEYS,
    from_pytorch,
    leaves_by_key,
    matching,
    state_dict,
    to_pytorch,
)
from flaxdl.weights.renaming import rename_keys

_LOGGER = logging.getLogger(__name__)

MAX_KEYS_SHOWN = 20

Target = tuple[tuple[str, ...], Any]  # path of a leaf, and the leaf


def load_weights(
    variables: Mapping[str, Any],
    source: Mapping[str, Any] | str | Path,
    *,
    omit: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Loads PyTorch weights into a tree of Flax variables.

    Names in the source may differ from those of the model as described in `rename_keys`. Dropped
    prefixes, added prefixes and ignored keys are logged.

    >>> model = flaxdl.models.ResNet18(num_classes=5)
    >>> variables = model.init(jax.random.key(0), images)
    >>> variables = flaxdl.load_weights(variables, "resnet18.safetensors", omit=("fc.*",))

    Args:
        variables: result of `Module.init`, or its shapes from `jax.eval_shape`.
        source: mapping from PyTorch keys to arrays in PyTorch's layouts; file or folder of weights,
            as in `read_weights`; or name of a pretrained model, such as "resnet50", which is
            downloaded if necessary.
        omit: patterns of PyTorch keys, such as `("fc.*",)`. Matching leaves keep their values from
            `variables`, and matching keys of the source are ignored.
        ignore: patterns of PyTorch keys that are ignored if the model does not need them, such as
            those of BERT's pretraining heads; for BERT models, use their `ignored_keys`.

    Returns:
        A tree of NumPy arrays with the structure and dtypes of `variables`.

    Raises:
        UserError: if keys are missing, unexpected or mismatched (the message lists all of them, and
            the architectures if they differ); if several prefixes could be dropped; if a pattern in
            `omit` matches no key; if an omitted leaf is only a shape, without a value to keep; or
            if the file cannot be found or read.
    """
    source, origin = _read_source(source)
    targets = leaves_by_key(variables)
    try:
        names, changes = rename_keys(source, targets, omit)
    except UserError as error:
        raise UserError(f"{origin} {error}") from error
    tensors = {name: np.asarray(source[key]) for key, name in names.items()}
    omitted = matching({*targets, *tensors}, omit, field="omit")
    ignored = _unneeded(tensors, targets, ignore) - omitted
    duplicates = _duplicates(tensors.keys() - targets.keys() - omitted - ignored, targets)
    for original, duplicate in duplicates.items():
        tensors.setdefault(original, tensors[duplicate])

    unexpected = tensors.keys() - targets.keys() - omitted - ignored - {*duplicates.values()}
    problems = {
        "missing": sorted(targets.keys() - tensors.keys() - omitted),
        "unexpected": sorted(unexpected),
        "mismatched": _mismatches(targets, tensors, omitted, duplicates),
        "ambiguous": _ambiguities(names),
    }
    if lines := [f"  {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys]:
        start = f"{origin} do not fit the model{_architectures(tensors, targets)}:"
        raise UserError("\n".join([start, *lines]))
    if ignored:
        changes.append(f"ignored {_listed(sorted(ignored), most=3)}")
    if changes:
        _LOGGER.warning("%s: %s", origin, "; ".join(changes))
    return unflatten_dict(_leaves(targets, tensors, omitted))


def export_weights(variables: Mapping[str, Any], path: str | Path) -> None:
    """Writes the variables as a safetensors file that PyTorch loads with `strict=True`.

    >>> flaxdl.export_weights(variables, "weights.safetensors")

    In PyTorch, `network.load_state_dict(safetensors.torch.load_file("weights.safetensors"))`.

    Raises:
        UserError: if the path does not end in `.safetensors`, if `variables` contains shapes
            instead of arrays, or if the file cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"weights are exported to a .safetensors file, got {str(path)!r}")
    tensors = state_dict(variables)
    if shapes := [key for key, x in tensors.items() if isinstance(x, jax.ShapeDtypeStruct)]:
        raise UserError(f"variables must contain arrays, got only the shape of {_listed(shapes)}")
    write_weights(tensors, path)


def _read_source(source: Mapping[str, Any] | str | Path) -> tuple[Mapping[str, Any], str]:
    """Returns the weights, and a description of them for messages."""
    if not isinstance(source, str | Path):
        return source, "the weights"
    path = locate(source)
    return read_weights(path), f"the weights in {path}"


def _duplicates(names: Collection[str], targets: Collection[str]) -> dict[str, str]:
    """Maps names of tied tensors in the model to their other names in the source."""
    return {TIED_KEYS[name]: name for name in names if TIED_KEYS.get(name) in targets}


def _unneeded(names: Collection[str], targets: Collection[str], ignore: Sequence[str]) -> set[str]:
    """Returns the names in the source that match `ignore` and that the model does not need."""
    return {
        name
        for name in names
        if name not in targets
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
        # A name is needed if it is the only one in the source for a tied tensor of the model.
        and (TIED_KEYS.get(name) not in targets or TIED_KEYS[name] in names)
    }


def _mismatches(
    targets: Mapping[str, Target],
    tensors: Mapping[str, np.ndarray],
    omitted: Collection[str],
    duplicates: Mapping[str, str],
) -> list[str]:
    """Describes the tensors that have a wrong shape or dtype, or differ from their tied tensor."""
    found = []
    for key in sorted(targets.keys() & tensors.keys() - omitted):
        tensor = tensors[key]
        if mismatch := _mismatch(tensor, *targets[key]):
            found.append(f"{key} has {mismatch}")
        elif not _equal(tensor, tensors[duplicates.get(key, key)]):
            found.append(f"{duplicates[key]} differs from {key}, which is the same tensor")
    return sorted(found)


def _leaves(
    targets: Mapping[str, Target], tensors: Mapping[str, np.ndarray], omitted: Collection[str]
) -> dict[tuple[str, ...], Any]:
    """Returns the leaves by path: copies of the tensors, and omitted leaves unchanged."""
    leaves = {}
    for key, (path, leaf) in targets.items():
        if key not in omitted:
            leaves[path] = _copied(from_pytorch(path[-1], tensors[key]), leaf.dtype)
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            raise UserError(
                f"omit leaves {key!r} at its initial value, but variables contains only its shape; "
                "pass the result of Module.init"
            )
        else:
            leaves[path] = leaf
    return leaves


def _mismatch(tensor: np.ndarray, path: tuple[str, ...], leaf: Any) -> str | None:
    """Describes the difference between a tensor and its leaf, or returns None if it matches."""
    expected = _shape(path, leaf)
    if tensor.shape != expected:
        return f"shape {list(tensor.shape)}, expected {list(expected)}"
    if _is_floating(tensor) != _is_floating(leaf):
        kind = "floating point" if _is_floating(leaf) else leaf.dtype
        return f"dtype {tensor.dtype}, expected {kind}"
    return None


def _shape(path: tuple[str, ...], leaf: Any) -> tuple[int, ...]:
    """Returns the shape of a leaf in PyTorch's layout."""
    return to_pytorch(path[-1], jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape


def _architectures(tensors: Mapping[str, np.ndarray], targets: Mapping[str, Target]) -> str:
    """Returns the part of the error message about another architecture, or an empty string."""
    theirs = detect_architecture({name: tensor.shape for name, tensor in tensors.items()})
    ours = detect_architecture({name: _shape(*target) for name, target in targets.items()})
    if theirs is not None and theirs != ours:
        return f", since they belong to {theirs}" + (f" and the model is {ours}" if ours else "")
    found = len(targets.keys() & tensors.keys())
    if found < len(targets) / 2:
        return f" and seem to be for another architecture ({found} of {len(targets)} keys match)"
    return ""


def _copied(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns a copy in C order that does not depend on the mapped file.

    The last axis of a kernel is the first axis in the file, so the array is copied in blocks that
    fit into the processor's cache. This is ten times faster than copying a large kernel as a whole.
    """
    result = np.empty(array.shape, dtype)
    source, target = np.atleast_1d(array), np.atleast_1d(result)
    for start in range(0, source.shape[-1], 64):
        target[..., start : start + 64] = source[..., start : start + 64]
    return result


def _ambiguities(names: Mapping[str, str]) -> list[str]:
    keys: dict[str, list[str]] = {}
    for key, name in names.items():
        keys.setdefault(name, []).append(key)
    return [f"{' and '.join(same)} for {name}" for name, same in keys.items() if len(same) > 1]


def _is_floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)  # NumPy does not count bfloat16


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return first is second or np.array_equal(first, second, equal_nan=True)


def _listed(keys: Sequence[str], most: int = MAX_KEYS_SHOWN) -> str:
    more = f" and {len(keys) - most} more, {len(keys)} in all"
    shown = ", ".join(repr(key)[1:-1] for key in keys[:most])  # escapes control characters
    return shown + (more if len(keys) > most else "")
