"""Checks of input values before training."""

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
_USUAL_MEAN = 2.0  # largest absolute mean of normalized inputs without a warning
_USUAL_DEVIATIONS = (0.25, 4.0)
_MIN_SHARED = 0.1  # fraction of a split that is unlikely to be shared by chance
_COMPARED_EXAMPLES = 1000
_COMPARED_VALUES = 64  # per example
_COMPARED_CANDIDATES = 50  # per example
_COMPARED_ROWS = 2**16  # per block, to limit memory


def check_inputs(train: Dataset, transform: Transform) -> None:
    """Checks a sample of the model inputs.

    Logs a warning if the mean is outside [-2, 2] or the standard deviation outside [0.25, 4],
    since networks then train poorly. Integer inputs, such as tokens, are not checked.

    Raises:
        UserError: if the examples cannot be prepared or are not finite.
    """
    examples = finite_without_weight(sample(train))
    prepared: Any = transform.prepare(examples, draws={})["inputs"]
    # A custom `normalize` may need a JAX array; that of Images works with NumPy, uncompiled.
    batch = prepared if isinstance(transform, Images) else jnp.asarray(prepared)
    with np.errstate(over="ignore", invalid="ignore"):
        inputs = np.asarray(transform.normalize(batch))
    if not jnp.issubdtype(inputs.dtype, jnp.floating) or not inputs.size:
        return
    name = train.name_of("inputs")
    low, high = float(prepared.min()), float(prepared.max())
    seen = f"{name} ({prepared.dtype}, {low:.4g} to {high:.4g})"
    if not np.isfinite(inputs).all():
        raise UserError(f"{seen}: some values are not finite after normalization")
    mean, deviation = inputs.mean(dtype=np.float64), inputs.std(dtype=np.float64)
    least, most = _USUAL_DEVIATIONS
    if abs(mean) > _USUAL_MEAN or not least <= deviation <= most:
        _LOGGER.warning(
            "%s: mean %.4g and standard deviation %.4g after normalization, in a sample of %d "
            "examples; networks train best near 0 and 1. %s",
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
    return "Images scales integers to 0 to 1; set transform.mean and transform.std in this range"


def check_finite(name: str, array: np.ndarray) -> None:
    """Checks that values are neither NaN nor infinite.

    Args:
        name: user-facing name of the array.
        array: array [N, ...] of any dtype.

    Raises:
        UserError: if a value is NaN or infinite; the message contains the first example with such
            a value and the number of these examples.
    """
    if array.dtype.kind not in "fc" or not array.size:
        return
    with np.errstate(invalid="ignore"):
        if np.isfinite([array.min(), array.max()]).all():  # both are NaN if any value is
            return
    rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))
    kinds = "NaN" if np.isnan(array[rows[0]]).any() else "infinity"
    raise UserError(
        f"{name} ({array.dtype}) contains {kinds} in example {rows[0]}; {len(rows):,} of "
        f"{len(array):,} examples have non-finite values. Remove or replace them"
    )


def check_weights(name: str, array: np.ndarray) -> None:
    """Checks the weights of examples.

    Args:
        name: user-facing name of the array.
        array: weights, one per example.

    Raises:
        UserError: if the array is not of numbers [N], if a weight is negative, NaN or infinite, or
            if all are 0, after conversion to float32.
    """
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise UserError(
            f"{name} must be one number per example, [N], got {array.dtype} {list(array.shape)}"
        )
    with np.errstate(over="ignore", under="ignore"):
        weights = array.astype(np.float32)  # as in batches
    wrong = np.flatnonzero(~((array >= 0) & (weights < math.inf)))
    if len(wrong):
        raise UserError(
            f"{name} must be at least 0 and finite in float32, got {array[wrong[0]]} at example "
            f"{wrong[0]}"
        )
    if not weights.any():
        raise UserError(f"{name} must not be 0 for all examples")


def warn_about_shared_examples(inputs: Mapping[str, np.ndarray]) -> None:
    """Warns if at least 10% of the sampled examples of a split are also in another split.

    Args:
        inputs: input arrays by user-facing name, that of the training split first.
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
            if found >= _MIN_SHARED:
                _LOGGER.warning(
                    "%.0f%% of the examples in %s are also in %s: scores on them do not measure "
                    "generalization",
                    100 * found, name, other,
                )  # fmt: skip


def _fraction_shared(
    some: np.ndarray, whole: np.ndarray, keys: np.ndarray, keys_of_whole: np.ndarray
) -> float:
    """Returns the fraction of a sample of rows that are also in `whole`.

    Rows with equal keys are candidates; they are then compared in full.
    """
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
    """Returns a hash of each row, [N], computed from at most 64 of its values."""
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
        bits ^= bits >> np.uint64(32)  # the low bits of small integers stored as floats are 0
        keys[start : start + len(part)] = (bits * factors).sum(1)  # modulo 2**64
    return keys


def _step(count: int, most: int) -> int:
    return max(-(-count // most), 1)
