"""Checks of the values of examples, before anything is trained on them."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxdl.data.dataset import Dataset, sample
from flaxdl.data.images import Images
from flaxdl.data.pipeline import finite_without_weight
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)
_USUAL_MEAN = 2.0  # of normalized inputs, at most, away from zero
_USUAL_DEVIATIONS = (0.25, 4.0)
_LEAST_SHARED = 0.1  # of a split, above which examples are not equal by chance
_COMPARED_EXAMPLES = 1000
_COMPARED_VALUES = 64  # of each example
_COMPARED_CANDIDATES = 50  # for each example
_COMPARED_ROWS = 2**16  # at a time


def check_inputs(train: Dataset, transform: Transform) -> None:
    """Checks a sample of what the model is about to see.

    A mean beyond ±2 or a standard deviation outside 0.25 to 4 is warned of, since networks learn
    badly from such inputs. Integers, such as tokens, are not checked.

    Raises:
        UserError: if the examples cannot be prepared, or are not finite.
    """
    examples = finite_without_weight(sample(train))
    prepared: Any = transform.prepare(examples, draws={})["inputs"]
    # A user's `normalize` may need an array of JAX; ours does not, and NumPy compiles nothing.
    batch = prepared if isinstance(transform, Images) else jnp.asarray(prepared)
    with np.errstate(over="ignore", invalid="ignore"):
        inputs = np.asarray(transform.normalize(batch))
    if not jnp.issubdtype(inputs.dtype, jnp.floating) or not inputs.size:
        return
    name = train.name_of("inputs")
    low, high = float(prepared.min()), float(prepared.max())
    seen = f"{name} ({prepared.dtype}, {low:.4g} to {high:.4g})"
    if not np.isfinite(inputs).all():
        raise UserError(f"{seen}: not all values are finite after normalization")
    mean, deviation = inputs.mean(dtype=np.float64), inputs.std(dtype=np.float64)
    least, most = _USUAL_DEVIATIONS
    if abs(mean) > _USUAL_MEAN or not least <= deviation <= most:
        _LOGGER.warning(
            "%s: mean %.4g and standard deviation %.4g after normalization, in a sample of %d "
            "examples; networks learn best near 0 and 1. %s",
            seen, mean, deviation, len(inputs), _advice(transform, prepared.dtype),
        )  # fmt: skip


def _advice(transform: Transform, dtype: np.dtype) -> str:
    if not isinstance(transform, Images):
        return "Subtract their mean and divide by their standard deviation"
    if jnp.issubdtype(dtype, jnp.floating):
        return (
            "Images does not scale floats: divide byte values by 255, use uint8, or set "
            "transform.mean and transform.std in the units of the images"
        )
    return "Images scales integers to 0 to 1, the range for transform.mean and transform.std"


def check_finite(name: str, array: np.ndarray) -> None:
    """Checks that numbers are neither NaN nor infinite.

    Args:
        name: what a user knows the array as.
        array: numbers [N, ...] of any kind.

    Raises:
        UserError: with the first example that holds such a value, and the number of them.
    """
    if array.dtype.kind not in "fc" or not array.size:
        return
    with np.errstate(invalid="ignore"):
        if np.isfinite([array.min(), array.max()]).all():  # NaN would be both of them
            return
    rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    kinds = "NaN" if np.isnan(array[rows[0]]).any() else "infinity"
    raise UserError(
        f"{name} ({array.dtype}) holds {kinds} in example {rows[0]}; {len(rows):,} of "
        f"{len(array):,} examples have values that are not finite. Remove or replace them"
    )


def warn_of_shared_examples(inputs: Mapping[str, np.ndarray]) -> None:
    """Warns if a tenth of a sample of a split, or more, is in another one as well.

    Args:
        inputs: a user's name of the array → the inputs, the training split first.
    """
    names = list(inputs)
    keys = {name: _keys(array) for name, array in inputs.items() if array.size}
    for number, name in enumerate(names):
        for other in names[:number]:
            some, whole = inputs[name], inputs[other]
            if some.dtype != whole.dtype or some.shape[1:] != whole.shape[1:]:
                continue
            if not (some.size and whole.size):
                continue
            found = _fraction_shared(some, whole, keys[name], keys[other])
            if found >= _LEAST_SHARED:
                _LOGGER.warning(
                    "%.0f %% of the examples in %s are also in %s: scores on them say nothing "
                    "about new data",
                    100 * found, name, other,
                )  # fmt: skip


def _fraction_shared(
    some: np.ndarray, whole: np.ndarray, keys: np.ndarray, keys_of_whole: np.ndarray
) -> float:
    """The fraction of a sample of rows that are rows of `whole` too; keys only find candidates."""
    sample = np.arange(0, len(some), _step(len(some), _COMPARED_EXAMPLES))
    order = np.argsort(keys_of_whole, kind="stable")
    first, last = (
        np.searchsorted(keys_of_whole, keys[sample], side, sorter=order)
        for side in ("left", "right")
    )
    last = np.minimum(last, first + _COMPARED_CANDIDATES)
    shared = [
        any(np.array_equal(some[row], whole[candidate]) for candidate in order[start:end])
        for row, start, end in zip(sample, first, last, strict=True)
    ]
    return sum(shared) / len(sample)


def _keys(array: np.ndarray) -> np.ndarray:
    """A number [N] for each row, which is equal for equal rows, from 64 of its values."""
    if array.ndim == 1:
        array = array[:, None]
    size = math.prod(array.shape[1:])
    places = np.unravel_index(np.arange(0, size, _step(size, _COMPARED_VALUES)), array.shape[1:])
    rows = array[:, *places]
    if array.dtype.kind not in "biuf" or array.itemsize > 8:
        return np.fromiter((hash(repr(row.tolist())) for row in rows), np.int64, len(rows))
    factors = np.random.default_rng(0).integers(2**63, size=rows.shape[1], dtype=np.uint64) * 2 + 1
    keys = np.zeros(len(rows), np.uint64)
    for start in range(0, len(rows), _COMPARED_ROWS):
        part = np.ascontiguousarray(rows[start : start + _COMPARED_ROWS])
        bits = part.view(f"u{part.itemsize}").astype(np.uint64)
        bits ^= bits >> np.uint64(32)  # of small whole numbers as floats the lower bits are 0
        keys[start : start + len(part)] = (bits * factors).sum(1)  # modulo 2**64
    return keys


def _step(count: int, most: int) -> int:
    return max(-(-count // most), 1)
