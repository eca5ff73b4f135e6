"""Files written by `torch.save`: zip archives, and the legacy format before PyTorch 1.6.

Both contain a pickle that describes the tensors, and the storages that the tensors are views of.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from flaxdl.errors import UserError
from flaxdl.weights.members import select_weights
from flaxdl.weights.pickles import Tensor, describe, read_pickle

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# Maximum number of entries in an archive; twice the number of tensors that its pickle can describe.
MAX_ENTRIES = 100_000

# Placeholder in a zip archive for a number that needs eight bytes (Zip64).
ZIP64_PLACEHOLDER = 2**32 - 1


class Span(NamedTuple):
    """Range of bytes in a file."""

    start: int
    size: int


def read_archive(data: mmap.mmap, member: str | None = None) -> dict[str, np.ndarray]:
    """Reads the tensors of a zip archive, as views of `data`.

    Args:
        data: memory-mapped file.
        member: name of the dictionary of tensors to read, as in `select_weights`.

    Raises:
        UserError: if the file is corrupt, or was not written by `torch.save`.
    """
    entries = _entries(data)
    roots = []
    for name in entries:
        root, _, inside = name.partition(b"/")
        if kind := _other_kind(name, inside):
            raise UserError(f"is {kind}")
        if inside == b"data.pkl":
            roots.append(root)
    if len(roots) != 1:
        raise UserError(
            "is a zip archive, but not one written by torch.save: "
            f"it contains {len(roots)} files data.pkl, expected 1"
        )
    root = roots[0]

    def span(name: str) -> Span:
        full_name = root + b"/" + name.encode("utf-8", "surrogatepass")
        if full_name not in entries:
            raise UserError(f"entry {name!r} is missing")
        return _entry_span(full_name, entries[full_name], data)

    if root + b"/byteorder" in entries:
        start, size = span("byteorder")
        if (order := data[start : start + min(size, 10)]) != b"little":
            raise UserError(f"has byte order {order!r}; only b'little' is supported")
    start, size = span("data.pkl")
    pickle = read_pickle(data[start : start + size], 0)
    tensors = select_weights(pickle.value, member)
    spans = {key: span(f"data/{key}") for key in _storage_keys(tensors)}
    return _arrays(tensors, spans, data)


def _other_kind(name: bytes, inside: bytes) -> str | None:
    """Returns a description of a file if the name of an entry shows that it has another format."""
    if inside == b"constants.pkl" or inside.startswith(b"code/"):
        return (
            "a TorchScript program, which is not supported; "
            "save the state_dict() of torch.jit.load(...) with torch.save"
        )
    if inside == b"models/model.json" or name == b"serialized_exported_program.json":
        return (
            "a program of torch.export, which is not supported; "
            "save torch.export.load(...).state_dict with torch.save"
        )
    if name.endswith(b".npy"):
        return "a file of numpy.savez, which is not supported; save it as safetensors"
    return None


def read_legacy(data: mmap.mmap, member: str | None = None) -> dict[str, np.ndarray]:
    """Reads the tensors of a file in the legacy format before PyTorch 1.6, as views of `data`.

    The file is a sequence of pickles (magic number, version, machine, value, storage keys),
    followed by the number of elements and the bytes of each storage.

    Args:
        data: memory-mapped file.
        member: name of the dictionary of tensors to read, as in `select_weights`.

    Raises:
        UserError: if the file is corrupt, or was not written by `torch.save`.
    """
    magic = read_pickle(data, 0)
    if magic.value != MAGIC_NUMBER:
        raise UserError("is a pickle, but not one written by torch.save")
    version = read_pickle(data, magic.end)
    if version.value != PROTOCOL_VERSION:
        raise UserError(
            f"has protocol version {describe(version.value)}; only {PROTOCOL_VERSION} is supported"
        )
    machine = read_pickle(data, version.end)
    if not isinstance(machine.value, dict) or machine.value.get("little_endian") is not True:
        raise UserError("was not written on a little-endian machine; others are not supported")
    pickle = read_pickle(data, machine.end)
    keys = read_pickle(data, pickle.end)
    if not isinstance(keys.value, list):
        raise UserError(f"contains {describe(keys.value)} instead of the list of storages")

    spans: dict[str, Span] = {}
    position = keys.end
    for key in keys.value:
        storage = pickle.storages.get(key) if isinstance(key, str) else None
        if storage is None or key in spans:
            raise UserError(f"lists storage {describe(key)}, which is unused or listed twice")
        span = Span(position + 8, storage.num_elements * storage.dtype.itemsize)
        position = sum(span)
        count = data[span.start - 8 : span.start]
        if position > len(data) or int.from_bytes(count, "little") != storage.num_elements:
            raise UserError(
                f"storage {describe(key)} is truncated, or does not have the size of its tensors"
            )
        spans[key] = span
    return _arrays(select_weights(pickle.value, member), spans, data)


def _entries(data: mmap.mmap) -> dict[bytes, int]:
    """Returns the position of each entry in the central directory of a zip archive, by name.

    Python's `zipfile` is not used: it creates an object of half a kilobyte for each 46-byte record
    before anything can be checked, and ignores the number of entries declared by the archive.
    """
    end = data.rfind(b"PK\5\6", max(0, len(data) - 22 - 2**16))  # a comment may follow it
    if end < 0 or end + 22 > len(data):
        raise UserError("is a broken zip archive: its end record is missing")
    count, size, position = struct.unpack_from("<HII", data, end + 10)
    locator = data[max(0, end - 20) : end]
    if locator.startswith(b"PK\6\7"):  # Zip64: the same fields with eight bytes
        (start,) = struct.unpack_from("<Q", locator, 8)
        record = data[start : start + 56]
        if len(record) != 56 or not record.startswith(b"PK\6\6"):
            raise UserError("is a broken zip archive: its Zip64 end record is missing")
        count, size, position = struct.unpack_from("<QQQ", record, 32)
    if count > MAX_ENTRIES:
        raise UserError(f"is a zip archive of {count} entries; at most {MAX_ENTRIES} are supported")

    positions = {}
    directory_end = position + size
    for _ in range(count):
        fixed = data[position : position + 46]
        if len(fixed) != 46 or not fixed.startswith(b"PK\1\2"):
            raise UserError("is a broken zip archive: its directory is truncated or misplaced")
        name_size, extra_size, comment_size = struct.unpack_from("<HHH", fixed, 28)
        positions[data[position + 46 : position + 46 + name_size]] = position
        position += 46 + name_size + extra_size + comment_size
    if position != directory_end or position > end:
        raise UserError("is a broken zip archive: its directory does not have the declared size")
    return positions


def _entry_span(name: bytes, position: int, data: mmap.mmap) -> Span:
    """Returns the range of bytes of an entry, which must be stored uncompressed.

    Args:
        name: name of the entry.
        position: position of the entry's record in the central directory.
        data: memory-mapped file.

    Raises:
        UserError: if the entry is compressed, truncated, or has no header.
    """
    shown = repr(name.decode("utf-8", "replace")[:100])
    (method,) = struct.unpack_from("<H", data, position + 10)
    *numbers, name_size, extra_size = struct.unpack_from("<IIHH", data, position + 20)
    (start,) = struct.unpack_from("<I", data, position + 42)
    extra_start = position + 46 + name_size
    zip64 = _zip64_numbers(data[extra_start : extra_start + extra_size])
    size, packed_size, start = (
        next(zip64, number) if number == ZIP64_PLACEHOLDER else number
        for number in (numbers[1], numbers[0], start)
    )
    if method != 0 or packed_size != size:
        raise UserError(f"entry {shown} is compressed, unlike those written by torch.save")
    header = data[start : start + 30]
    if len(header) != 30 or not header.startswith(b"PK\3\4"):
        raise UserError(f"entry {shown} has no header")
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    span = Span(start + 30 + name_size + extra_size, size)
    if sum(span) > len(data):
        raise UserError(f"entry {shown} is truncated")
    return span


def _zip64_numbers(extra: bytes) -> Iterator[int]:
    """Yields the numbers of an entry that need eight bytes, in the order of the zip format."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == 1:
            field = extra[position : position + size]
            yield from struct.unpack_from(f"<{len(field) // 8}Q", field)
            return
        position += size


def _storage_keys(tensors: Mapping[str, Tensor]) -> set[str]:
    return {tensor.storage.key for tensor in tensors.values()}


def _arrays(
    tensors: Mapping[str, Tensor], spans: Mapping[str, Span], data: mmap.mmap
) -> dict[str, np.ndarray]:
    arrays = {}
    for key, tensor in tensors.items():
        try:
            arrays[key] = _array(tensor, spans[tensor.storage.key], data)
        except KeyError as error:
            raise UserError(f"the storage of tensor {key!r} is missing") from error
        except ValueError as error:
            raise UserError(f"tensor {key!r} {error}") from error
    return arrays


def _array(tensor: Tensor, span: Span, data: mmap.mmap) -> np.ndarray:
    """Returns a tensor as a read-only view of the file, after checking its bounds."""
    storage, shape = tensor.storage, tensor.shape
    itemsize = storage.dtype.itemsize
    if (storage.first + storage.num_elements) * itemsize > span.size:
        raise UserError("needs a larger storage than the file contains")
    if len(tensor.strides) != len(shape):
        raise UserError(f"has {len(shape)} sizes and {len(tensor.strides)} strides")
    if math.prod(max(size, 1) for size in shape) * itemsize >= 2**63:
        raise UserError(f"has shape {list(shape)}, which is too large for any memory")
    if 0 in shape:
        return np.broadcast_to(np.zeros((), storage.dtype), shape)
    strides = [
        stride if size > 1 else 0 for size, stride in zip(shape, tensor.strides, strict=True)
    ]
    last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if last >= storage.num_elements:
        raise UserError(
            f"extends to element {last} of a storage with {storage.num_elements} elements"
        )
    return np.ndarray(
        shape,
        storage.dtype,
        buffer=data,
        offset=span.start + (storage.first + tensor.offset) * itemsize,
        strides=[stride * itemsize for stride in strides],
    )
