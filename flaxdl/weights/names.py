"""PyTorch names and layouts of the leaves of a Flax variables tree.

Submodules have their PyTorch names, so the path of a leaf joined with dots is its state-dict key,
except for the last component:

====================  =============================  =====================================
Flax leaf             PyTorch                        layout
====================  =============================  =====================================
`kernel`              `weight`                       `[*K, I, O]` here, `[O, I, *K]` there
`scale`, `embedding`  `weight`                       the same
`mean`, `var`         `running_mean`, `running_var`  the same
anything else         the same name                  the same
====================  =============================  =====================================

`I` input features, `O` output features, `*K` window of a convolution.

Patterns of parameters (to freeze, to omit, or to exclude from weight decay) are `fnmatch` globs
that match whole PyTorch keys, such as `layer1.*` or `*.bias`.
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

# Second keys that PyTorch writes for tied tensors: duplicate → original.
TIED_KEYS = {
    "decoder.weight": "encoder.weight",  # RNNLM with tied weights
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
}


def pytorch_key(path: Path) -> str:
    """Returns the state-dict key of the leaf at `path` in its collection.

    >>> flaxdl.weights.pytorch_key(("layer1.0", "conv1", "kernel"))
    'layer1.0.conv1.weight'
    """
    *modules, leaf = path
    return ".".join([*modules, _PYTORCH_NAMES.get(leaf, leaf)])


def to_pytorch(leaf: str, value: Any) -> Any:
    """Returns the value of a leaf in PyTorch's layout.

    Args:
        leaf: name of the leaf, such as `kernel`.
        value: array or `jax.ShapeDtypeStruct`; the result has the same type.
    """
    return _transpose(value, (-1, -2), (0, 1)) if leaf == "kernel" else value


def from_pytorch(leaf: str, value: Any) -> Any:
    """Returns the value of a leaf in Flax's layout; this is the inverse of `to_pytorch`."""
    return _transpose(value, (0, 1), (-1, -2)) if leaf == "kernel" else value


def _transpose(value: Any, source: tuple[int, int], destination: tuple[int, int]) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        # An array of this shape that takes no memory, since all strides are zero.
        stand_in = np.broadcast_to(np.False_, value.shape)
        return jax.ShapeDtypeStruct(np.moveaxis(stand_in, source, destination).shape, value.dtype)
    return np.moveaxis(np.asarray(value), source, destination)


def leaves_by_key(variables: Mapping[str, Any]) -> dict[str, tuple[Path, Any]]:
    """Returns the path, including the collection, and the leaf for each PyTorch key.

    Args:
        variables: tree of variables by collection.

    Raises:
        UserError: if two leaves have the same key.
    """
    found: dict[str, tuple[Path, Any]] = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        key = pytorch_key(path[1:])
        if key in found:
            raise UserError(f"{found[key][0]} and {path} share the PyTorch key {key!r}")
        found[key] = (path, leaf)
    return found


def state_dict(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the variables as NumPy arrays with PyTorch's names and layouts.

    PyTorch's additional keys are included: `num_batches_tracked` (zero) next to running statistics,
    and both names of tied tensors. If the variables are shapes from `jax.eval_shape`, the values
    are shapes, too.

    >>> model, images = flaxdl.models.ResNet18(), jnp.zeros((1, 64, 64, 3))
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    >>> flaxdl.state_dict(shapes)["layer1.0.conv1.weight"].shape  # [O, I, H, W]
    (64, 64, 3, 3)
    """
    result: dict[str, Any] = {}
    for key, (path, leaf) in leaves_by_key(variables).items():
        value = to_pytorch(path[-1], leaf)
        result[key] = value if isinstance(value, jax.ShapeDtypeStruct) else np.asarray(value)
        if path[-1] == "mean":
            layer = key.removesuffix("running_mean")
            result[layer + "num_batches_tracked"] = np.zeros((), np.int64)
    for duplicate, original in TIED_KEYS.items():
        # A model without the output layer has its embeddings, but not its bias.
        bias = duplicate.removesuffix("weight") + "bias"
        if original in result and (bias in result or duplicate.endswith(".bias")):
            result.setdefault(duplicate, result[original])
    return result


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Returns True if a name matches at least one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def matching(
    keys: Collection[str], patterns: Iterable[str], *, field: str = "patterns"
) -> set[str]:
    """Returns the keys that match at least one of the patterns.

    Args:
        keys: PyTorch keys.
        patterns: `fnmatch` globs.
        field: name of the patterns in error messages.

    Raises:
        UserError: if a pattern matches no key; the message suggests similar keys.
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
                f"parameters have names such as {', '.join(near)}"
            )
        found |= matches
    return found


def pattern_mask(params: Mapping[str, Any], patterns: Sequence[str], *, field: str) -> Any:
    """Returns a tree like `params` that is True for parameters whose PyTorch key matches a pattern.

    None leaves stay None.

    Raises:
        UserError: if a pattern matches no key, as in `matching`.
    """
    leaves = flatten_dict(dict(params))
    matches = matching({pytorch_key(path) for path in leaves}, patterns, field=field)
    return unflatten_dict(
        {
            path: None if leaf is None else pytorch_key(path) in matches
            for path, leaf in leaves.items()
        }
    )
