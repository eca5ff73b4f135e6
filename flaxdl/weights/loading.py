"""Parameters from PyTorch into a Flax variables tree, strictly, and back into a file."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

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

# What DataParallel, trainers and torch.compile put in front of every key.
WRAPPERS = ("module.", "model.", "_orig_mod.")
# Entries of a state dict that are no weights: a counter, and constants of Hugging Face's BERT.
BUFFERS = ("num_batches_tracked", "position_ids", "token_type_ids")
MOST_KEYS_SHOWN = 20


def load_weights(
    variables: Mapping[str, Any],
    source: Mapping[str, Any] | str | Path,
    *,
    omit: Sequence[str] = (),
) -> dict[str, Any]:
    """The variables tree with every leaf taken from PyTorch's weights.

    The names in the source may differ from the model's in the ways that `names_in_model` knows.

    >>> load_weights(resnet.init(key, images), "resnet18.pth", omit=("fc.*",))

    Args:
        variables: what `Module.init` returns, or its shapes as `jax.eval_shape` gives them.
        source: PyTorch keys → arrays in PyTorch's layouts; or a file or folder of weights, as
            `read_weights` takes it; or a published name, such as "resnet50", which is downloaded.
        omit: patterns over PyTorch keys, as in `("fc.*",)`: these leaves keep the value that
            `variables` has, and what the source holds under such keys is ignored.

    Returns:
        A tree of NumPy arrays like `variables`, each in the dtype of its leaf there.

    Raises:
        ValueError: with all missing, unexpected and mismatched keys at once; if a pattern of
            `omit` matches nothing; if an omitted leaf is a shape and so has no value to keep; if
            the file cannot be found or read.
    """
    origin = "the weights"
    if isinstance(source, str | Path):
        path = locate(source)
        source, origin = read_weights(path), f"the weights in {path}"

    targets = leaves_by_key(variables)
    names = names_in_model(source, targets)
    tensors = {name: np.asarray(source[key]) for key, name in names.items()}
    omitted = matching({*targets, *tensors}, omit, field="omit")
    duplicates = {
        TIED_KEYS[key]: key
        for key in tensors.keys() & TIED_KEYS.keys() - targets.keys() - omitted
        if TIED_KEYS[key] in targets
    }
    for original, duplicate in duplicates.items():
        tensors.setdefault(original, tensors[duplicate])

    leaves: dict[tuple[str, ...], Any] = {}
    mismatched = []
    for key, (path, leaf) in targets.items():
        if key in omitted:
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"omit leaves {key!r} at its initial value, but variables holds "
                    "only its shape; pass what Module.init returns"
                )
            leaves[path] = leaf
        elif key in tensors:
            tensor = tensors[key]
            expected = to_pytorch(path[-1], jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape
            if tensor.shape != expected:
                mismatched.append(f"{key} has shape {list(tensor.shape)}, needed {list(expected)}")
            elif _is_floating(tensor) != _is_floating(leaf):
                needed = "floating point" if _is_floating(leaf) else leaf.dtype
                mismatched.append(f"{key} has dtype {tensor.dtype}, needed {needed}")
            elif not _equal(tensor, tensors[duplicates.get(key, key)]):
                mismatched.append(f"{duplicates[key]} differs from {key}, which is the same tensor")
            else:
                leaves[path] = _copied(from_pytorch(path[-1], tensor), leaf.dtype)

    problems = {
        "missing": sorted(targets.keys() - tensors.keys() - omitted),
        "unexpected": sorted(tensors.keys() - targets.keys() - omitted - {*duplicates.values()}),
        "mismatched": sorted(mismatched),
        "ambiguous": _ambiguities(names),
    }
    if any(problems.values()):
        raise ValueError(
            f"{origin} do not fit the model:\n"
            + "\n".join(f"  {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys)
        )
    return unflatten_dict(leaves)


def export_weights(variables: Mapping[str, Any], path: str | Path) -> None:
    """Writes the variables as a safetensors file that PyTorch loads with `strict=True`.

    Raises:
        ValueError: if the path does not end in `.safetensors`, `variables` holds shapes, or the
            file cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"weights are exported to a .safetensors file, got {str(path)!r}")
    tensors = state_dict(variables)
    if shapes := [key for key, x in tensors.items() if isinstance(x, jax.ShapeDtypeStruct)]:
        raise ValueError(f"variables must hold arrays, got only the shape of {_listed(shapes)}")
    write_weights(tensors, path)


def names_in_model(keys: Collection[str], targets: Collection[str]) -> dict[str, str]:
    """Key in the source → the model's name for it; buffers without a target are left out.

    Words that wrappers put in front of every key are dropped, `bert.` is dropped or added where
    the model lacks or has it, and LayerNorm's parameters were once called gamma and beta.

    >>> names_in_model(["module.bert.LayerNorm.gamma"], ["LayerNorm.weight", "LayerNorm.bias"])
    {'module.bert.LayerNorm.gamma': 'LayerNorm.weight'}
    """
    names = {key: key for key in keys if key in targets or key.rpartition(".")[2] not in BUFFERS}
    while wrapper := _wrapper(names.values(), targets):
        names = {key: name.removeprefix(wrapper) for key, name in names.items()}

    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        names = {
            key: name.removesuffix(old) + new if name.endswith(old) else name
            for key, name in names.items()
        }

    has_encoder, wants_encoder = (
        any(name.startswith("bert.") for name in some) for some in (names.values(), targets)
    )
    if has_encoder and not wants_encoder:
        names = {key: name.removeprefix("bert.") for key, name in names.items()}
    elif wants_encoder and not has_encoder:
        names = {
            key: f"bert.{name}" if f"bert.{name}" in targets else name
            for key, name in names.items()
        }
    return names


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


def _wrapper(names: Collection[str], targets: Collection[str]) -> str | None:
    for wrapper in WRAPPERS:
        everywhere = names and all(name.startswith(wrapper) for name in names)
        if everywhere and not any(target.startswith(wrapper) for target in targets):
            return wrapper
    return None


def _ambiguities(names: Mapping[str, str]) -> list[str]:
    keys: dict[str, list[str]] = {}
    for key, name in names.items():
        keys.setdefault(name, []).append(key)
    return [f"{' and '.join(some)} for {name}" for name, some in keys.items() if len(some) > 1]


def _is_floating(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)  # bfloat16 is one of JAX's


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    return first is second or np.array_equal(first, second, equal_nan=True)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_KEYS_SHOWN} more, {len(keys)} in all"
    return ", ".join(keys[:MOST_KEYS_SHOWN]) + (more if len(keys) > MOST_KEYS_SHOWN else "")
