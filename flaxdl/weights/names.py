"""PyTorch's names and layouts for the leaves of a Flax variables tree.

Submodules carry their PyTorch names, so the path of a leaf joined with dots is its state-dict key
up to the last word:

| Flax leaf             | PyTorch                       | layout                                  |
|-----------------------|-------------------------------|-----------------------------------------|
| `kernel`              | `weight`                      | `[*K, I, O]` here, `[O, I, *K]` there   |
| `scale`, `embedding`  | `weight`                      | the same                                |
| `mean`, `var`         | `running_mean`, `running_var` | the same                                |
| anything else         | the same name                 | the same                                |

I input features, O output features, K the window of a convolution. Patterns for parameters (what
is frozen, not decayed, omitted) are `fnmatch` globs over whole PyTorch keys: `layer1.*`, `*.bias`.
"""

import difflib
import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxdl.errors import UserError

Path = tuple[str, ...]

_PYTORCH_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}

# Keys that PyTorch writes a second time for a shared tensor: duplicate → original.
TIED_KEYS = {
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
}


def pytorch_key(path: Path) -> str:
    """The state-dict key of the leaf at `path` within its collection.

    >>> pytorch_key(("layer1.0", "conv1", "kernel"))
    'layer1.0.conv1.weight'
    """
    *modules, leaf = path
    return ".".join([*modules, _PYTORCH_NAMES.get(leaf, leaf)])


def to_pytorch(leaf: str, value: Any) -> Any:
    """The leaf in PyTorch's layout, an array or a `jax.ShapeDtypeStruct` like the one given."""
    return _transpose(value, (-1, -2), (0, 1)) if leaf == "kernel" else value


def from_pytorch(leaf: str, value: Any) -> Any:
    """The inverse of `to_pytorch`."""
    return _transpose(value, (0, 1), (-1, -2)) if leaf == "kernel" else value


def _transpose(value: Any, source: tuple[int, int], destination: tuple[int, int]) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        # An array of the shape that takes no memory: all strides are zero.
        stand_in = np.broadcast_to(np.False_, value.shape)
        return jax.ShapeDtypeStruct(np.moveaxis(stand_in, source, destination).shape, value.dtype)
    return np.moveaxis(np.asarray(value), source, destination)


def leaves_by_key(variables: Mapping[str, Any]) -> dict[str, tuple[Path, Any]]:
    """PyTorch key → (path, leaf) for every leaf of a variables tree, collection name included.

    Raises:
        UserError: if two leaves would share a key.
    """
    found: dict[str, tuple[Path, Any]] = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        key = pytorch_key(path[1:])
        if key in found:
            raise UserError(f"{found[key][0]} and {path} share the PyTorch key {key!r}")
        found[key] = (path, leaf)
    return found


def state_dict(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables under PyTorch's names and in its layouts, as NumPy arrays.

    Keys that PyTorch holds beside the tensors are there too: `num_batches_tracked` (zero) next to
    running statistics, and both names of tied tensors. Shapes from `jax.eval_shape` give shapes.

    >>> state_dict(resnet.init(key, images))["layer1.0.conv1.weight"].shape
    (64, 64, 3, 3)
    """
    result: dict[str, Any] = {}
    for key, (path, leaf) in leaves_by_key(variables).items():
        value = to_pytorch(path[-1], leaf)
        result[key] = value if isinstance(value, jax.ShapeDtypeStruct) else np.asarray(value)
        if path[-1] == "mean":
            result[key.removesuffix("running_mean") + "num_batches_tracked"] = np.int64(0)
    if TIED_KEYS["cls.predictions.decoder.bias"] in result:
        result |= {duplicate: result[original] for duplicate, original in TIED_KEYS.items()}
    return result


def matching(
    keys: Collection[str], patterns: Iterable[str], *, field: str = "patterns"
) -> set[str]:
    """The keys that match at least one of the patterns.

    Raises:
        UserError: if a pattern matches nothing, with the nearest keys; `field` says whose it is.
    """
    if isinstance(patterns, str):
        raise UserError(f"{field} must be a sequence of patterns, got the string {patterns!r}")
    found: set[str] = set()
    for pattern in patterns:
        matches = {key for key in keys if fnmatch.fnmatchcase(key, pattern)}
        if not matches:
            near = difflib.get_close_matches(pattern, keys, n=3, cutoff=0.4) or sorted(keys)[:3]
            raise UserError(
                f"{field}: the pattern {pattern!r} matches no parameter; "
                f"parameters are named like {', '.join(near)}"
            )
        found |= matches
    return found


def pattern_mask(params: Mapping[str, Any], patterns: Sequence[str], *, field: str) -> Any:
    """A tree like `params` that is True where the parameter's PyTorch key matches a pattern.

    A None among the parameters stays None.

    Raises:
        UserError: as `matching` does.
    """
    leaves = flatten_dict(dict(params))
    matches = matching({pytorch_key(path) for path in leaves}, patterns, field=field)
    return unflatten_dict(
        {
            path: None if leaf is None else pytorch_key(path) in matches
            for path, leaf in leaves.items()
        }
    )
