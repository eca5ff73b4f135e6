"""Files of weights: read without executing anything in them, and written as safetensors.

Arrays that are read are read-only views of the file, which is mapped into memory: reading costs
nothing until an array is used, and the file must stay as it is for as long.
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
# What Hugging Face puts into a folder; the first that is there is read.
FOLDER_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
LONGEST_INDEX = 2**26  # bytes, of about half a million names


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """PyTorch's names and arrays in a file, or in a folder as Hugging Face lays it out.

    The content decides how a file is read, not its name: safetensors, what `torch.save` writes
    (`.pth`, `.pt`, `.bin`, `.ckpt`) now and before PyTorch 1.6, or the index of a checkpoint that
    is spread over several files in its folder.

    A training checkpoint gives its model's tensors, and whatever stands beside them is passed over:
    those under `state_dict`, `model_state_dict` or `model`, or else the only dictionary of tensors
    that it holds. Of several, one is named as in `checkpoint.pth:ema`, or `checkpoint.pth:ema.net`
    if it lies deeper; an existing path with a colon in it is taken as it is.

    Returns:
        Read-only arrays; those of checkpoints may be strided, and views of one another.

    Raises:
        UserError: beginning with the path, if it cannot be read, is broken, holds anything but
            tensors among the weights, or several sets of weights, with their names.
    """
    path, member = split_member(path)
    if path.is_dir():
        found = [path / name for name in FOLDER_NAMES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: holds no weights; needed one of {', '.join(FOLDER_NAMES)}")
        path = found[0]
    try:
        return _read(path, member)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def write_weights(tensors: Mapping[str, Any], path: str | Path) -> None:
    """Writes PyTorch's names and arrays as a safetensors file that Hugging Face reads too.

    The file appears under its name when it is complete.

    Raises:
        UserError: beginning with the path, if an array cannot be stored or the file not written.
    """
    path = local_path(path)
    # Not np.ascontiguousarray, which makes numbers into arrays of one axis.
    arrays = {name: np.array(tensor, order="C", copy=None) for name, tensor in tensors.items()}
    try:
        with atomic_write(path) as new:
            mode = new.stat().st_mode
            save_file(arrays, new, metadata={"format": "pt"})
            new.chmod(mode)  # the library gives its file to the owner alone
    except (OSError, SafetensorError) as error:
        raise UserError(not_written(path, error)) from error


def _read(
    path: Path, member: str | None = None, *, is_shard: bool = False
) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError("is no file" if path.exists() else "does not exist")
    with path.open("rb") as file:
        start = file.read(9)
        if not start:
            raise UserError("is empty")
        # A safetensors file begins with the length of its header, so with bytes that are no text.
        if start.startswith(b"{") and b"\0" not in start and not is_shard:
            _check_no_member(member)
            return _read_index(path.parent, start + file.read(LONGEST_INDEX))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if start.startswith(b"PK\3\4"):
            return read_archive(data, member)
    if start[8:] == b"{" or path.suffix == ".safetensors":
        _check_no_member(member)
        return _read_safetensors(path, data)
    if start.startswith(b"\x80"):
        return read_legacy(data, member)
    raise UserError(_what_else(data))


def _check_no_member(member: str | None) -> None:
    if member is not None:
        raise UserError(f"holds one set of tensors, so that {member!r} cannot be one of several")


def _read_safetensors(path: Path, data: mmap.mmap) -> dict[str, np.ndarray]:
    try:
        # The library checks that the tensors fill the file without gaps and overlaps.
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            layout = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise UserError(f"is no sound safetensors file: {error}") from error
    arrays = {}
    position = 8 + int.from_bytes(data[:8], "little")
    for name, (dtype, shape) in layout.items():
        if dtype not in DTYPES:
            raise UserError(f"its tensor {name!r} has dtype {dtype}; read are {', '.join(DTYPES)}")
        try:
            arrays[name] = np.ndarray(shape, DTYPES[dtype], buffer=data, offset=position)
        except (ValueError, TypeError) as error:
            raise UserError(f"its tensor {name!r} of shape {shape}: {error}") from error
        position += arrays[name].nbytes
    return arrays


def _read_index(folder: Path, text: bytes) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint in several files: {"weight_map": {name: file, ...}}."""
    if len(text) > LONGEST_INDEX:
        raise UserError(f"is longer than an index of weights may be, {LONGEST_INDEX} bytes")
    try:
        weight_map = json.loads(text)["weight_map"]
        names: dict[str, list[str]] = {}  # those that each file gives
        for name, file in weight_map.items():
            names.setdefault(str(file), []).append(name)
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"is no index of weights, a JSON object with weight_map: {error}"
        ) from error

    arrays: dict[str, np.ndarray] = {}
    for file in sorted(names):
        if file != Path(file).name or file in ("", "..") or "\\" in file:
            raise UserError(f"names the file {file!r}; only files in its own folder are read")
        try:
            held = _read(folder / file, is_shard=True)
        except ValueError as error:
            raise UserError(f"its file {file!r} {error}") from error
        if missing := [name for name in names[file] if name not in held]:
            raise UserError(f"its file {file!r} does not hold {', '.join(missing[:20])}")
        arrays |= {name: held[name] for name in names[file]}
    return {name: arrays[name] for name in weight_map}


def _what_else(data: mmap.mmap) -> str:
    if data[257:262] == b"ustar":
        return (
            "is in the tar format of PyTorch before 0.1.10, which is not read; "
            "load it with a PyTorch of its time and save it again"
        )
    if data[:24] == b"version https://git-lfs.":
        return "is a pointer of Git LFS in place of the weights; `git lfs pull` fetches them"
    if data[:8] == b"\x89HDF\r\n\x1a\n":
        return (
            "is an HDF5 file, as Keras and TensorFlow write them, which is not read; "
            "needed safetensors or a file of torch.save"
        )
    return (
        f"begins with {data[:8]!r}; needed safetensors, a file of torch.save, "
        "or the index of a checkpoint in several files"
    )
