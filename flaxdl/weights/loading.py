"""Parameters from PyTorch into a Flax variables tree, strictly."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from flaxdl.weights.names import TIED_KEYS, from_pytorch, leaves_by_key, matching, to_pytorch


def load_weights(
    variables: Mapping[str, Any], source: Mapping[str, Any], *, omit: Sequence[str] = ()
) -> dict[str, Any]:
    """The variables tree with every leaf taken from a PyTorch state dict.

    Args:
        variables: what `Module.init` returns, or its shapes as `jax.eval_shape` gives them.
        source: PyTorch keys → arrays in PyTorch's layouts.
        omit: patterns over PyTorch keys, as in `("fc.*",)`: these leaves keep the value that
            `variables` has, and what the source holds under such keys is ignored.

    Returns:
        A tree of NumPy arrays like `variables`, each in the dtype of its leaf there.

    Raises:
        ValueError: with all missing, unexpected and mismatched keys at once; if a pattern of
            `omit` matches nothing; if an omitted leaf is a shape and so has no value to keep.
    """
    targets = leaves_by_key(variables)
    tensors = {
        key: value
        for key, value in source.items()
        if not key.endswith("num_batches_tracked") and (key in targets or key not in TIED_KEYS)
    }
    omitted = matching({*targets, *tensors}, omit, field="omit")

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
            expected = to_pytorch(path[-1], jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape
            if np.shape(tensors[key]) != expected:
                mismatched.append(
                    f"{key} has shape {list(np.shape(tensors[key]))}, needed {list(expected)}"
                )
                continue
            leaves[path] = np.asarray(from_pytorch(path[-1], tensors[key]), leaf.dtype)

    problems = {
        "missing": sorted(targets.keys() - tensors.keys() - omitted),
        "unexpected": sorted(tensors.keys() - targets.keys() - omitted),
        "mismatched": sorted(mismatched),
    }
    if any(problems.values()):
        raise ValueError(
            "the weights do not fit the model:\n"
            + "\n".join(f"  {kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        )
    return unflatten_dict(leaves)
