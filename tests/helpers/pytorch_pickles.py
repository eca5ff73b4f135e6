"""Files of `torch.save` made by hand, instruction by instruction."""

import pickle
import struct
import zipfile

import numpy as np

from flaxdl.weights.pytorch_files import MAGIC_NUMBER


def write_archive(path, data, **storages):
    """An archive of `torch.save` around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", data)
        archive.writestr("model/byteorder", storages.pop("byteorder", "little"))
        for key, content in storages.items():
            archive.writestr(f"model/data/{key.lstrip('_')}", content)
    return path


def write_legacy(path, data, keys=(), storages=b""):
    header = [MAGIC_NUMBER, 1001, {"little_endian": True}]
    start = b"".join(pickle.dumps(value, 2) for value in header)
    path.write_bytes(start + data + pickle.dumps(list(keys), 2) + storages)
    return path


def instructions(value):
    """Those that put a plain value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def storage_instructions(num_elements=6, kind="FloatStorage", part=None):
    more = b"" if part is None else instructions(part)
    return (
        b"(" + instructions("storage") + f"ctorch\n{kind}\n".encode() + instructions("0")
        + instructions("cpu") + instructions(num_elements) + more + b"tQ"
    )  # fmt: skip


def tensor_instructions(offset=0, shape=(2, 3), strides=(3, 1), storage=None):
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage_instructions() if storage is None else storage)
        + b"".join(map(instructions, (offset, shape, strides, False))) + b"}tR"
    )  # fmt: skip


def tensor_pickle(*args, **kwargs):
    """A pickle of {"a": tensor}."""
    return b"\x80\x02}" + instructions("a") + tensor_instructions(*args, **kwargs) + b"s."


SIX = np.arange(6, dtype=np.float32)
WEIGHTS = b"}" + instructions("a") + tensor_instructions() + b"s"
"""The dictionary {"a": SIX.reshape(2, 3)}."""


def dictionary(**items):
    """Instructions of a dictionary from those of its values."""
    return b"}" + b"".join(instructions(key) + code + b"s" for key, code in items.items())


def write_checkpoint(path, **items):
    """An archive of a dictionary, with SIX for its storage."""
    return write_archive(path, b"\x80\x02" + dictionary(**items) + b".", _0=SIX.tobytes())


def write_legacy_checkpoint(path, **items):
    """The same in the format before PyTorch 1.6."""
    storage = struct.pack("<q", 6) + SIX.tobytes()
    return write_legacy(path, b"\x80\x02" + dictionary(**items) + b".", ["0"], storage)
