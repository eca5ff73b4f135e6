"""Parameters from PyTorch into a Flax variables tree, strictly, and back into a file."""

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
from flaxdl.weights.architectures import architecture
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
from flaxdl.weights.renaming import names_in_model

_LOGGER = logging.getLogger(__name__)

MOST_KEYS_SHOWN = 20

Target = tuple[tuple[str, ...], Any]  # the path of a leaf, and the leaf


def load_weights(
    variables: Mapping[str, Any],
    source: Mapping[str, Any] | str | Path,
    *,
    omit: Sequence[str] = (),
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """The variables tree with every leaf taken from PyTorch's weights.

    The names in the source may differ from the model's in the ways that `names_in_model` allows.
    What is dropped from them, added to them or ignored is logged.

    >>> load_weights(resnet.init(key, images), "resnet18.pth", omit=("fc.*",))

    Args:
        variables: what `Module.init` returns, or its shapes as `jax.eval_shape` gives them.
        source: PyTorch keys → arrays in PyTorch's layouts; or a file or folder of weights, as
            `read_weights` takes it; or a published name, such as "resnet50", which is downloaded.
        omit: patterns over PyTorch keys, as in `("fc.*",)`: these leaves keep the value that
            `variables` has, and what the source holds under such keys is ignored.
        ignore: patterns over keys that the source may hold and the model does not need, such as
            the heads that a BERT was pretrained with; `ignored_keys` of a model.

    Returns:
        A tree of NumPy arrays like `variables`, each in the dtype of its leaf there.

    Raises:
        UserError: with all missing, unexpected and mismatched keys together, and the
            architectures if they differ; if a prefix could be dropped in several ways; if a pattern
            of `omit` matches nothing; if an omitted leaf is a shape and so has no value to keep; if
            the file cannot be found or read.
    """
    source, origin = _opened(source)
    targets = leaves_by_key(variables)
    try:
        names, changes = names_in_model(source, targets, omit)
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

    Raises:
        UserError: if the path does not end in `.safetensors`, `variables` holds shapes, or the
            file cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"weights are exported to a .safetensors file, got {str(path)!r}")
    tensors = state_dict(variables)
    if shapes := [key for key, x in tensors.items() if isinstance(x, jax.ShapeDtypeStruct)]:
        raise UserError(f"variables must hold arrays, got only the shape of {_listed(shapes)}")
    write_weights(tensors, path)


def _opened(source: Mapping[str, Any] | str | Path) -> tuple[Mapping[str, Any], str]:
    """The weights, and what messages call them."""
    if not isinstance(source, str | Path):
        return source, "the weights"
    path = locate(source)
    return read_weights(path), f"the weights in {path}"


def _duplicates(names: Collection[str], targets: Collection[str]) -> dict[str, str]:
    """Names of the model → second names under which the source holds the same tensors."""
    return {TIED_KEYS[name]: name for name in names if TIED_KEYS.get(name) in targets}


def _unneeded(names: Collection[str], targets: Collection[str], ignore: Sequence[str]) -> set[str]:
    """The names that the model does not need, although they may be there."""
    return {
        name
        for name in names
        if name not in targets
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
        # Unless it is the only one of two names for a tensor that the model has.
        and (TIED_KEYS.get(name) not in targets or TIED_KEYS[name] in names)
    }


def _mismatches(
    targets: Mapping[str, Target],
    tensors: Mapping[str, np.ndarray],
    omitted: Collection[str],
    duplicates: Mapping[str, str],
) -> list[str]:
    """The tensors of another shape or kind, or that differ from the one they are tied to."""
    found = []
    for key in sorted(targets.keys() & tensors.keys() - omitted):
        tensor = tensors[key]
        if misfit := _misfit(tensor, *targets[key]):
            found.append(f"{key} has {misfit}")
        elif not _equal(tensor, tensors[duplicates.get(key, key)]):
            found.append(f"{duplicates[key]} differs from {key}, which is the same tensor")
    return sorted(found)


def _leaves(
    targets: Mapping[str, Target], tensors: Mapping[str, np.ndarray], omitted: Collection[str]
) -> dict[tuple[str, ...], Any]:
    """The leaves by path: copies of the tensors, and what is omitted as it is."""
    leaves = {}
    for key, (path, leaf) in targets.items():
        if key not in omitted:
            leaves[path] = _copied(from_pytorch(path[-1], tensors[key]), leaf.dtype)
        elif isinstance(leaf, jax.ShapeDtypeStruct):
            raise UserError(
                f"omit leaves {key!r} at its initial value, but variables holds "
                "only its shape; pass what Module.init returns"
            )
        else:
            leaves[path] = leaf
    return leaves


def _misfit(tensor: np.ndarray, path: tuple[str, ...], leaf: Any) -> str | None:
    """What of a tensor does not fit the leaf, and what is needed."""
    expected = _shape(path, leaf)
    if tensor.shape != expected:
        return f"shape {list(tensor.shape)}, needed {list(expected)}"
    if _is_floating(tensor) != _is_floating(leaf):
        needed = "floating point" if _is_floating(leaf) else leaf.dtype
        return f"dtype {tensor.dtype}, needed {needed}"
    return None


def _shape(path: tuple[str, ...], leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf in PyTorch."""
    return to_pytorch(path[-1], jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape


def _architectures(tensors: Mapping[str, np.ndarray], targets: Mapping[str, Target]) -> str:
    """Says so if the weights are those of another architecture."""
    theirs = architecture({name: tensor.shape for name, tensor in tensors.items()})
    ours = architecture({name: _shape(*target) for name, target in targets.items()})
    if theirs is not None and theirs != ours:
        return f", since they belong to {theirs}" + (f" and the model is {ours}" if ours else "")
    found = len(targets.keys() & tensors.keys())
    if found < len(targets) / 2:
        return f" and seem to be of another architecture ({found} of {len(targets)} names found)"
    return ""


def _copied(array: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy in C order, in memory of its own: a mapped file may change or go away.

    In blocks: a kernel's last axis was the first in the file, and what fits into the processor's
    cache is copied ten times faster than a large kernel at once.
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
    return [f"{' and '.join(some)} for {name}" for name, some in keys.items() if len(some) > 1]


def _is_floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)  # bfloat16 is one of JAX's


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return first is second or np.array_equal(first, second, equal_nan=True)


def _listed(keys: Sequence[str], most: int = MOST_KEYS_SHOWN) -> str:
    more = f" and {len(keys) - most} more, {len(keys)} in all"
    shown = ", ".join(repr(key)[1:-1] for key in keys[:most])  # no control characters of a file
    return shown + (more if len(keys) > most else "")
