"""The files of `torch.save`: the archive it writes today, and the format before PyTorch 1.6.

Both hold a pickle that describes tensors, and beside it the storages that they are views of.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from flaxdl.errors import UserError
from flaxdl.weights.members import choose
from flaxdl.weights.pickles import Tensor, describe, read_pickle

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

# Of an archive; twice as many as the tensors that its pickle can describe.
MOST_ENTRIES = 100_000

# In a zip archive, what stands in place of a number that needs eight bytes.
ELSEWHERE = 2**32 - 1


class Span(NamedTuple):
    """Bytes of the file, from `start` on."""

    start: int
    size: int


def read_archive(data: mmap.mmap, member: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a zip archive, as views of `data`.

    Args:
        data: the file.
        member: which of several dictionaries of tensors is read, as `choose` takes it.

    Raises:
        UserError: if it is broken, or not what `torch.save` writes.
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
            "is a zip archive, but not one of torch.save: "
            f"it holds {len(roots)} files data.pkl, needed 1"
        )
    root = roots[0]

    def span(name: str) -> Span:
        full_name = root + b"/" + name.encode("utf-8", "surrogatepass")
        if full_name not in entries:
            raise UserError(f"its entry {name!r} is missing")
        return _entry_span(full_name, entries[full_name], data)

    if root + b"/byteorder" in entries:
        start, size = span("byteorder")
        if (order := data[start : start + min(size, 10)]) != b"little":
            raise UserError(f"its byte order is {order!r}; only b'little' is read")
    start, size = span("data.pkl")
    pickle = read_pickle(data[start : start + size], 0)
    tensors = choose(pickle.value, member)
    spans = {key: span(f"data/{key}") for key in _storage_keys(tensors)}
    return _arrays(tensors, spans, data)


def _other_kind(name: bytes, inside: bytes) -> str | None:
    """Which other program writes archives with an entry of this name, if one is known."""
    if inside == b"constants.pkl" or inside.startswith(b"code/"):
        return (
            "a TorchScript program, which is not read; "
            "save the state_dict() of torch.jit.load(...) with torch.save"
        )
    if inside == b"models/model.json" or name == b"serialized_exported_program.json":
        return (
            "a program of torch.export, which is not read; "
            "save torch.export.load(...).state_dict with torch.save"
        )
    if name.endswith(b".npy"):
        return "a file of numpy.savez, which is not read; save it as safetensors"
    return None


def read_legacy(data: mmap.mmap, member: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file in the format before PyTorch 1.6, as views of `data`.

    It is a row of pickles (a magic number, a version, the machine it was written on, the value,
    the keys of the storages) and then, for each key, its number of elements and its bytes.

    Args:
        data: the file.
        member: which of several dictionaries of tensors is read, as `choose` takes it.

    Raises:
        UserError: if it is broken, or not what `torch.save` wrote.
    """
    magic = read_pickle(data, 0)
    if magic.value != MAGIC_NUMBER:
        raise UserError("is a pickle, but not one of torch.save")
    version = read_pickle(data, magic.end)
    if version.value != PROTOCOL_VERSION:
        raise UserError(
            f"has the protocol version {describe(version.value)}; only {PROTOCOL_VERSION} is read"
        )
    machine = read_pickle(data, version.end)
    if not isinstance(machine.value, dict) or machine.value.get("little_endian") is not True:
        raise UserError("was not written on a little-endian machine; no other is read")
    pickle = read_pickle(data, machine.end)
    keys = read_pickle(data, pickle.end)
    if not isinstance(keys.value, list):
        raise UserError(f"has {describe(keys.value)} in place of the list of storages")

    spans: dict[str, Span] = {}
    position = keys.end
    for key in keys.value:
        storage = pickle.storages.get(key) if isinstance(key, str) else None
        if storage is None or key in spans:
            raise UserError(f"lists the storage {describe(key)}, which no tensor has, or twice")
        span = Span(position + 8, storage.num_elements * storage.dtype.itemsize)
        position = sum(span)
        count = data[span.start - 8 : span.start]
        if position > len(data) or int.from_bytes(count, "little") != storage.num_elements:
            raise UserError(
                f"its storage {describe(key)} is cut off, or has another size than its tensors need"
            )
        spans[key] = span
    return _arrays(choose(pickle.value, member), spans, data)


def _entries(data: mmap.mmap) -> dict[bytes, int]:
    """Name → where the directory of a zip archive, at its end, describes the entry.

    Python's zipfile would make an object of half a kilobyte of each 46 bytes before anything of
    them can be checked, and does not look at how many entries the archive says it has.
    """
    end = data.rfind(b"PK\5\6", max(0, len(data) - 22 - 2**16))  # a comment may follow it
    if end < 0 or end + 22 > len(data):
        raise UserError("is a broken zip archive: its end is missing")
    count, size, position = struct.unpack_from("<HII", data, end + 10)
    locator = data[max(0, end - 20) : end]
    if locator.startswith(b"PK\6\7"):  # the same again, in numbers of eight bytes
        (start,) = struct.unpack_from("<Q", locator, 8)
        record = data[start : start + 56]
        if len(record) != 56 or not record.startswith(b"PK\6\6"):
            raise UserError("is a broken zip archive: its long record of the end is missing")
        count, size, position = struct.unpack_from("<QQQ", record, 32)
    if count > MOST_ENTRIES:
        raise UserError(f"is a zip archive of {count} entries; at most {MOST_ENTRIES} are read")

    places = {}
    directory_end = position + size
    for _ in range(count):
        fixed = data[position : position + 46]
        if len(fixed) != 46 or not fixed.startswith(b"PK\1\2"):
            raise UserError("is a broken zip archive: its directory is cut off or elsewhere")
        name_size, extra_size, comment_size = struct.unpack_from("<HHH", fixed, 28)
        places[data[position + 46 : position + 46 + name_size]] = position
        position += 46 + name_size + extra_size + comment_size
    if position != directory_end or position > end:
        raise UserError("is a broken zip archive: its directory has another length than it says")
    return places


def _entry_span(name: bytes, place: int, data: mmap.mmap) -> Span:
    """Where the bytes of an entry lie; they are stored as they are, so they can be mapped.

    Args:
        name: of the entry.
        place: where the directory describes it.
        data: the file.
    """
    called = repr(name.decode("utf-8", "replace")[:100])
    (method,) = struct.unpack_from("<H", data, place + 10)
    *numbers, name_size, extra_size = struct.unpack_from("<IIHH", data, place + 20)
    (start,) = struct.unpack_from("<I", data, place + 42)
    extra_start = place + 46 + name_size
    long = _long_numbers(data[extra_start : extra_start + extra_size])
    size, packed_size, start = (
        next(long, number) if number == ELSEWHERE else number
        for number in (numbers[1], numbers[0], start)
    )
    if method != 0 or packed_size != size:
        raise UserError(f"its entry {called} is compressed; torch.save never does")
    header = data[start : start + 30]
    if len(header) != 30 or not header.startswith(b"PK\3\4"):
        raise UserError(f"its entry {called} has no header")
    name_size, extra_size = struct.unpack_from("<HH", header, 26)
    span = Span(start + 30 + name_size + extra_size, size)
    if sum(span) > len(data):
        raise UserError(f"its entry {called} is cut off")
    return span


def _long_numbers(extra: bytes) -> Iterator[int]:
    """The numbers of an entry for which four bytes are too few, in the order of the zip format."""
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
            raise UserError(f"the storage of its tensor {key!r} is missing") from error
        except ValueError as error:
            raise UserError(f"its tensor {key!r} {error}") from error
    return arrays


def _array(tensor: Tensor, span: Span, data: mmap.mmap) -> np.ndarray:
    """A read-only view of the bytes of a storage; nothing outside of them can be reached."""
    storage, shape = tensor.storage, tensor.shape
    itemsize = storage.dtype.itemsize
    if (storage.first + storage.num_elements) * itemsize > span.size:
        raise UserError("needs a longer storage than the file holds")
    if len(tensor.strides) != len(shape):
        raise UserError(f"has {len(shape)} sizes and {len(tensor.strides)} strides")
    if math.prod(max(size, 1) for size in shape) * itemsize >= 2**63:
        raise UserError(f"has the shape {list(shape)}, which is too large for any memory")
    if 0 in shape:
        return np.broadcast_to(np.zeros((), storage.dtype), shape)
    strides = [
        stride if size > 1 else 0 for size, stride in zip(shape, tensor.strides, strict=True)
    ]
    last = tensor.offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    if last >= storage.num_elements:
        raise UserError(
            f"reaches to element {last} of a storage of {storage.num_elements} elements"
        )
    return np.ndarray(
        shape,
        storage.dtype,
        buffer=data,
        offset=span.start + (storage.first + tensor.offset) * itemsize,
        strides=[stride * itemsize for stride in strides],
    )
