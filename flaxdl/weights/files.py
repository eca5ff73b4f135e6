"""Weight files: read without executing any code in them, and written as safetensors.

Arrays are read-only views of the memory-mapped file. Data is read when an array is used, and the
file must not change until then.
"""

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.outputs import not_written
from flaxdl.filesystem.paths import local_path
from flaxdl.weights.members import split_member
from flaxdl.weights.pytorch_files import read_archive, read_legacy

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# Weight files in a Hugging Face folder; the first that exists is read.
FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_INDEX_SIZE = 2**26  # bytes; about half a million names


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Reads PyTorch names and arrays from a file, or from a folder in Hugging Face format.

    The format is detected from the content, not from the file name: safetensors, a file written by
    `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`) in its zip format or in the legacy format before
    PyTorch 1.6, or the index of a sharded checkpoint with shards in the same folder.

    From a training checkpoint, only the weights of the model are read: the dictionary under
    `state_dict`, `model_state_dict` or `model`, or else the only dictionary of tensors. If there
    are several, append the name of one to the path, as in `checkpoint.pth:ema`, or
    `checkpoint.pth:ema.net` for a nested dictionary. A path that contains a colon and exists is
    always read as a path.

    Args:
        path: file, folder, or file with the name of a dictionary, as in `checkpoint.pth:ema`.

    Returns:
        Read-only arrays by PyTorch name. Those from `torch.save` may be strided and share memory.

    Raises:
        UserError: if the file cannot be read, is corrupt, contains other values than tensors among
            the weights, or contains several dictionaries of tensors (the message lists their
            names); the message begins with the path.
    """
    path, member = split_member(path)
    if path.is_dir():
        found = [path / name for name in FOLDER_NAMES if (path / name).is_file()]
        if not found:
            names = ", ".join(FOLDER_NAMES)
            raise UserError(f"{path}: contains no weights; expected one of {names}")
        path = found[0]
    try:
        return _read(path, member)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def write_weights(tensors: Mapping[str, Any], path: str | Path) -> None:
    """Writes PyTorch names and arrays as a safetensors file that Hugging Face libraries can read.

    The write is atomic: the file appears under its name once it is complete.

    Args:
        tensors: arrays by PyTorch name.
        path: output file; replaced if it exists.

    Raises:
        UserError: if an array cannot be stored or the file cannot be written; the message begins
            with the path.
    """
    path = local_path(path)
    # Not np.ascontiguousarray, which turns scalars into arrays with one axis.
    arrays = {name: np.array(tensor, order="C", copy=None) for name, tensor in tensors.items()}
    try:
        with atomic_write(path) as new:
            mode = new.stat().st_mode
            save_file(arrays, new, metadata={"format": "pt"})
            new.chmod(mode)  # safetensors creates files that only their owner can read
    except (OSError, SafetensorError) as error:
        raise UserError(not_written(path, error)) from error


def _read(
    path: Path, member: str | None = None, *, is_shard: bool = False
) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError("is not a file" if path.exists() else "does not exist")
    with path.open("rb") as file:
        start = file.read(9)
        if not start:
            raise UserError("is empty")
        # A safetensors file begins with the length of its header as a binary number, not with text.
        if start.startswith(b"{") and b"\0" not in start and not is_shard:
            _check_no_member(member)
            return _read_index(path.parent, start + file.read(MAX_INDEX_SIZE))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if start.startswith(b"PK\3\4"):
            return read_archive(data, member)
    if start[8:] == b"{" or path.suffix == ".safetensors":
        _check_no_member(member)
        return _read_safetensors(path, data)
    if start.startswith(b"\x80"):
        return read_legacy(data, member)
    raise UserError(_unsupported_format(data))


def _check_no_member(member: str | None) -> None:
    if member is not None:
        raise UserError(f"contains a single set of tensors, so {member!r} cannot select one")


def _read_safetensors(path: Path, data: mmap.mmap) -> dict[str, np.ndarray]:
    try:
        # The library checks that the tensors fill the file without gaps and overlaps.
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            layout = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise UserError(f"is not a valid safetensors file: {error}") from error
    arrays = {}
    position = 8 + int.from_bytes(data[:8], "little")
    for name, (dtype, shape) in layout.items():
        if dtype not in DTYPES:
            raise UserError(f"tensor {name!r} has dtype {dtype}; supported are {', '.join(DTYPES)}")
        try:
            arrays[name] = np.ndarray(shape, DTYPES[dtype], buffer=data, offset=position)
        except (ValueError, TypeError) as error:
            raise UserError(f"tensor {name!r} of shape {shape}: {error}") from error
        position += arrays[name].nbytes
    return arrays


def _read_index(folder: Path, text: bytes) -> dict[str, np.ndarray]:
    """Reads a sharded checkpoint, given its index: {"weight_map": {name: file, ...}}."""
    if len(text) > MAX_INDEX_SIZE:
        raise UserError(f"is too large for an index of weights, at most {MAX_INDEX_SIZE} bytes")
    try:
        weight_map = json.loads(text)["weight_map"]
        names: dict[str, list[str]] = {}  # names of the tensors in each shard
        for name, file in weight_map.items():
            names.setdefault(str(file), []).append(name)
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"is not an index of weights (a JSON object with weight_map): {error}"
        ) from error

    arrays: dict[str, np.ndarray] = {}
    for file in sorted(names):
        if file != Path(file).name or file in ("", "..") or "\\" in file:
            raise UserError(f"refers to the file {file!r}; only files in the same folder are read")
        try:
            shard = _read(folder / file, is_shard=True)
        except ValueError as error:
            raise UserError(f"shard {file!r} {error}") from error
        if missing := [name for name in names[file] if name not in shard]:
            raise UserError(f"shard {file!r} does not contain {', '.join(missing[:20])}")
        arrays |= {name: shard[name] for name in names[file]}
    return {name: arrays[name] for name in weight_map}


def _unsupported_format(data: mmap.mmap) -> str:
    if data[257:262] == b"ustar":
        return (
            "is in the tar format of PyTorch before 0.1.10, which is not supported; "
            "load it with PyTorch and save it again"
        )
    if data[:24] == b"version https://git-lfs.":
        return "is a Git LFS pointer instead of the weights; run `git lfs pull` to fetch them"
    if data[:8] == b"\x89HDF\r\n\x1a\n":
        return (
            "is an HDF5 file, as written by Keras and TensorFlow, which is not supported; "
            "expected safetensors or a file written by torch.save"
        )
    return (
        f"begins with {data[:8]!r}; expected safetensors, a file written by torch.save, "
        "or the index of a sharded checkpoint"
    )
