"""The arrays of a checkpoint, read by TensorStore alone: neither flaxdl nor Orbax is involved."""

import hashlib
from pathlib import Path

import numpy as np


def read_arrays(folder):
    """Reads all arrays of a checkpoint, by the name that they have in it."""
    import tensorstore as ts

    base = {"driver": "ocdbt", "base": Path(folder).absolute().as_uri() + "/"}
    keys = [key.decode() for key in ts.KvStore.open(base).result().list().result()]
    names = sorted(key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray"))
    specs = {name: {"driver": "zarr", "kvstore": base | {"path": f"{name}/"}} for name in names}
    return {name: ts.open(spec).result().read().result() for name, spec in specs.items()}


def fingerprints(arrays):
    """Data type, shape and SHA-256 of the bytes of each array, such as `float32 [6, 3] 7376...`."""
    return {name: _fingerprint(np.asarray(array)) for name, array in arrays.items()}


def _fingerprint(array):
    digest = hashlib.sha256(array.tobytes()).hexdigest()  # in C order
    return f"{array.dtype} {list(array.shape)} {digest}"
