"""Weight files: PyTorch's files are read, others are rejected, and nothing is executed."""

import json
import os
import pickle
import re
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import zipfile
from argparse import Namespace

import ml_dtypes
import numpy as np
import pytest
from helpers.broken_files import FIXTURES, safetensors_bytes, sound_files
from helpers.processor_time import earlier_objects_frozen, takes_at_most
from helpers.pytorch_pickles import (
    SIX,
    instructions,
    storage_instructions,
    tensor_instructions,
    tensor_pickle,
    write_archive,
    write_legacy,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from flaxdl.weights import pickles, pytorch_files, read_weights, write_weights

EIGHTHS = np.arange(12, dtype=np.float32) / 8
# What `fixtures/make_fixtures.py` saved.
SAVED = {
    "float64": EIGHTHS[:6].reshape(2, 3).astype(np.float64),
    "float32": EIGHTHS[:6].reshape(2, 3),
    "float16": EIGHTHS[:6].reshape(2, 3).astype(np.float16),
    "bfloat16": EIGHTHS[:6].reshape(2, 3).astype(ml_dtypes.bfloat16),
    "int64": np.arange(6).reshape(2, 3) - 3,
    "uint8": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "bool": np.array([[True, False, True], [False, True, False]]),
    "transposed": EIGHTHS.reshape(3, 4).T,
    "shared": EIGHTHS[3:11:2],
    "expanded": np.full((2, 2), EIGHTHS[5]),
    "parameter": EIGHTHS[:3],
    "number": np.array(0.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for key, array in ours.items():
        assert array.dtype == theirs[key].dtype
        assert array.shape == theirs[key].shape
        assert array.tobytes() == theirs[key].tobytes()


def refusal(path):
    """The error message of reading `path`, which begins with the path."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}") as error:
        read_weights(path)
    return str(error.value)


# PyTorch's files


@pytest.mark.parametrize("name", ["archive", "legacy"])
def test_files_of_pytorch(name, tmp_path):
    tensors = read_weights(FIXTURES / f"{name}.pth")
    assert_same(tensors, SAVED)
    assert not any(tensor.flags.writeable for tensor in tensors.values())
    # The content decides, not the name.
    path = tmp_path / "model.safetensors.bin"
    path.write_bytes((FIXTURES / f"{name}.pth").read_bytes())
    assert_same(read_weights(path), SAVED)


def test_views_share_the_mapped_file():
    tensors = read_weights(FIXTURES / "archive.pth")
    assert np.shares_memory(tensors["transposed"], tensors["shared"])
    assert tensors["expanded"].strides == (0, 0)


def test_a_training_checkpoint_gives_the_weights_of_its_model():
    expected = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bias": np.full(2, 0.5, np.float32),
    }
    assert_same(read_weights(FIXTURES / "checkpoint.pth"), expected)
    assert_same(read_weights(FIXTURES / "objects.pth"), expected)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=4),
    st.sampled_from(["float16", "bfloat16", "float32", "float64", "int32", "int8", "bool"]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_views_that_pytorch_saves(shape, dtype, is_archive, random):
    torch = pytest.importorskip("torch")
    whole = torch.randint(0, 2, shape).to(getattr(torch, dtype))
    view = whole.permute(random.sample(range(whole.ndim), whole.ndim))
    for axis in range(view.ndim):
        first, step = random.randint(0, view.shape[axis]), random.randint(1, 3)
        view = view[(slice(None),) * axis + (slice(first, None, step),)]
    state = {"whole": whole, "view": view, "nested.parameter": torch.nn.Parameter(view.float())}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file, _use_new_zipfile_serialization=is_archive)
        file.flush()
        tensors = read_weights(file.name)
    assert list(tensors) == list(state)
    for key, array in tensors.items():
        assert str(array.dtype) == str(state[key].dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(float), state[key].detach().double().numpy())


def test_modules_that_pytorch_saves(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    expected = {key: value.numpy() for key, value in model.state_dict().items()}
    path = tmp_path / "model.pt"
    for protocol in (2, 4, 5):
        torch.save(model.state_dict(), path, pickle_protocol=protocol)
        assert_same(read_weights(path), expected)


# Safetensors, and folders


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(SAVED, path)
    tensors = read_weights(path)
    assert_same(dict(sorted(tensors.items())), dict(sorted(SAVED.items())))
    assert not any(tensor.flags.writeable for tensor in tensors.values())
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_what_cannot_be_written_leaves_no_trace(tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights({"a": np.ones(2)}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"model.safetensors cannot be written: .*complex128"):
        write_weights({"a": np.ones(2, complex)}, path)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(ValueError, match=r"nowhere/model.safetensors cannot be written: .*No such"):
        write_weights({"a": np.ones(2)}, tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(ValueError, match=r"/b.safetensors cannot be written: .*Not a directory"):
        write_weights({"a": np.ones(2)}, path / "b.safetensors")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_one_checkpoint(kind, tmp_path):
    shards = {"00001-of-2": ("bool", "bfloat16", "transposed"), "00002-of-2": ("number", "empty")}
    weight_map = {}
    for part, names in shards.items():
        file = kind.replace(".", f"-{part}.", 1)
        tensors = {name: SAVED[name] for name in names}
        if kind == "model.safetensors":
            write_weights(tensors, tmp_path / file)
        else:
            (tmp_path / file).write_bytes((FIXTURES / "archive.pth").read_bytes())
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / f"{kind}.index.json").write_text(json.dumps(index))
    expected = {name: SAVED[name] for name in weight_map}
    assert_same(read_weights(tmp_path), expected)
    assert_same(read_weights(tmp_path / f"{kind}.index.json"), expected)

    index["weight_map"]["more"] = file
    (tmp_path / f"{kind}.index.json").write_text(json.dumps(index))
    assert refusal(tmp_path).endswith(f"shard '{file}' does not contain more")
    (tmp_path / file).unlink()
    assert f"shard '{file}' does not exist" in refusal(tmp_path)


def test_the_index_says_which_of_two_shards_gives_a_name(tmp_path):
    files = ("model-00001-of-2.safetensors", "model-00002-of-2.safetensors")
    for value, file in enumerate(files):
        own = {f"own{value}": np.ones(1)}
        write_weights({"a": np.full(2, value), "b": np.full(2, value)} | own, tmp_path / file)
    weight_map = {"b": files[1], "a": files[0], "own1": files[1]}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    expected = {"b": np.full(2, 1), "a": np.full(2, 0), "own1": np.ones(1)}
    assert_same(read_weights(tmp_path), expected)
    # The other file holds it, which does not help.
    path.write_text(json.dumps({"weight_map": weight_map | {"own1": files[0]}}))
    assert f"shard '{files[0]}' does not contain own1" in refusal(path)


def test_a_folder_prefers_safetensors(tmp_path):
    assert "contains no weights; expected one of model.safetensors, " in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes((FIXTURES / "archive.pth").read_bytes())
    assert "float16" in read_weights(tmp_path)
    write_weights({"better": np.ones(1)}, tmp_path / "model.safetensors")
    assert list(read_weights(str(tmp_path))) == ["better"]


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "a/b.bin", "..", "", "a\\b.bin", "C:\\b.bin"]
)
def test_an_index_stays_in_its_folder(file, tmp_path):
    write_weights({"a": np.ones(1)}, tmp_path / "secret.safetensors")
    path = tmp_path / "folder" / "model.safetensors.index.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"weight_map": {"a": file}}))
    assert "only files in the same folder are read" in refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"weight_map": ["a"]}',
        '{"weight_map": null}',
        '{"weight_map": ' + "[" * 100_000,
        '{"weight_map": "\udcff"}',
    ],
)
def test_an_index_of_another_form(text, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert "is not an index of weights" in refusal(path)


def test_an_index_is_no_shard(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    assert "shard 'model.safetensors.index.json' begins with" in refusal(path)


# Broken files


@pytest.mark.parametrize("name", ["safetensors", "legacy", "archive"])
def test_truncated_at_every_place(name, tmp_path):
    ((file, data),) = sound_files()[name].items()
    for end in range(0, len(data), 5 if name == "archive" else 1):
        path = tmp_path / file
        path.unlink(missing_ok=True)
        path.write_bytes(data[:end])
        refusal(path)


def with_header(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 2**31) + b'{"a": 1}', "header too large"),
        (struct.pack("<Q", 2**63) + b'{"a": 1}', "header too large"),
        (struct.pack("<Q", 90_000_000) + b'{"a": 1}', "invalid header length"),
        (with_header({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "invalid offset"),
        (with_header({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "invalid offset"),
        (with_header({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)), "invalid offset"),
        (with_header({"a": entry(8, 0)}, bytes(8)), "not a valid"),
        (with_header({"a": entry(0, 8)}, bytes(7)), "not fully covered"),
        (with_header({"a": entry(0, 8)}, bytes(9)), "not fully covered"),
        (with_header({"a": entry(0, 8, [3])}, bytes(8)), "invalid shape"),
        (with_header({"a": entry(0, 8, [2**62, 2**62])}, bytes(8)), "overflow"),
        (with_header({"a": entry(0, 8, [-2])}, bytes(8)), "not a valid"),
        (with_header({"a": entry(0, 8, [2], "F33")}, bytes(8)), "not a valid"),
        (with_header({"a": entry(0, 2, [2], "F8_E5M2")}, bytes(2)), "'a' has dtype F8_E5M2; supp"),
        (with_header({"a": entry(0, 0, [0] + [1] * 100)}), "tensor 'a' of shape"),
        (with_header({"a": entry(0, 0, [0, 2**62, 2**62])}), "not a valid|tensor 'a' of shape"),
    ],
)
def test_unsound_safetensors(content, message, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with (
        earlier_objects_frozen(),
        takes_at_most(0.5),
        pytest.raises(ValueError, match=f"^{path}: .*(?i:{message})"),
    ):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "begins with b'<!DOCTYP'; expected safetensors, a file written by"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (pickle.dumps([1, 2, 3], 2), "is a pickle, but not one written by torch.save"),
        (pickle.dumps({"a": np.ones(1)}, 2), "is a pickle, but not one written by torch.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file, as written by Keras and TensorFlow"),
        (pickle.dumps([1, 2, 3], 0), "begins with"),
    ],
)
def test_other_files(content, message, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_weights(path)


def test_files_that_are_not_there(tmp_path):
    assert refusal(tmp_path / "a.pth").endswith(": does not exist")
    os.mkfifo(tmp_path / "pipe.pth")
    assert refusal(tmp_path / "pipe.pth").endswith(": is not a file")


def test_the_first_formats_of_all_are_refused_by_name(tmp_path):
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    assert "is in the tar format of PyTorch before 0.1.10" in refusal(path)
    np.savez(path.with_suffix(".npz"), a=np.ones(1))
    assert "is a file of numpy.savez, which is not supported" in refusal(path.with_suffix(".npz"))


# Archives and pickles made by hand


def test_archives_made_by_hand_are_as_pytorchs(tmp_path):
    path = write_archive(tmp_path / "a.pth", tensor_pickle(), _0=SIX.tobytes())
    assert_same(read_weights(path), {"a": SIX.reshape(2, 3)})
    storage = struct.pack("<q", 6) + SIX.tobytes()
    path = write_legacy(tmp_path / "b.pth", tensor_pickle(), ["0"], storage)
    assert_same(read_weights(path), {"a": SIX.reshape(2, 3)})
    part = storage_instructions(part=("1", 2, 4))
    path = write_legacy(tmp_path / "c.pth", tensor_pickle(1, (3,), (1,), part), ["0"], storage)
    assert_same(read_weights(path), {"a": SIX[3:]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "extends to element 6 of a storage with 6"),
        ({"shape": (3, 3)}, "extends to element 8 of a storage with 6"),
        ({"strides": (4, 1)}, "extends to element 6 of a storage with 6"),
        ({"strides": (2**62, 2**62)}, "extends to element"),
        ({"shape": (2**40, 2**40), "strides": (0, 0)}, "too large for any memory"),
        ({"shape": (2**62, 0, 4), "strides": (1, 1, 1)}, "too large for any memory"),
        ({"shape": (2**63, 1)}, "9223372036854775808 is not a valid size"),
        ({"shape": (-1, 3)}, "-1 is not a valid size"),
        ({"strides": (-1, 1)}, "-1 is not a valid"),
        ({"offset": -1}, "-1 is not a valid"),
        ({"offset": 0.5}, "0.5 is not a valid"),
        ({"offset": None}, "None is not a valid"),
        ({"shape": (True, 3)}, "True is not a valid"),
        ({"shape": [2, 3]}, "a list is not a shape"),
        ({"shape": (2,)}, "has 1 sizes and 2 strides"),
        ({"shape": (1,) * 65, "strides": (1,) * 65}, "a tuple is not a shape"),
        ({"storage": storage_instructions(7)}, "needs a larger storage than the file contains"),
        ({"storage": storage_instructions(2**62)}, "needs a larger storage than the file contains"),
        ({"storage": storage_instructions(kind="DoubleStorage")}, "needs a larger storage"),
        ({"storage": storage_instructions(kind="QInt8Storage")}, "it contains torch.QInt8Storage"),
        ({"storage": storage_instructions(part=("1", 3, 4))}, "exceeds its size"),
        ({"storage": storage_instructions(part=7)}, "part of a storage is not in PyTorch's form"),
        ({"storage": b"N"}, "call of torch._utils._rebuild_tensor_v2 does not have"),
    ],
)
def test_tensors_outside_of_their_storage(changes, message, tmp_path):
    path = write_archive(tmp_path / "a.pth", tensor_pickle(**changes), _0=SIX.tobytes())
    assert message in refusal(path)


def test_a_tensor_of_many_equal_elements_costs_nothing(tmp_path):
    data = tensor_pickle(0, (2**30, 2**30), (0, 0))
    path = write_archive(tmp_path / "a.pth", data, _0=SIX.tobytes())
    assert read_weights(path)["a"].shape == (2**30, 2**30)
    path = write_archive(tmp_path / "b.pth", tensor_pickle(0, (2**40, 0), (1, 1)), _0=b"")
    assert "larger storage" in refusal(path)


def test_storages_that_are_missing_or_strange(tmp_path):
    path = tmp_path / "a.pth"
    assert "entry 'data/0' is missing" in refusal(write_archive(path, tensor_pickle()))
    storage = struct.pack("<q", 6) + SIX.tobytes()
    for keys, content, message in (
        ([], b"", "the storage of tensor 'a' is missing"),
        (["0", "0"], 2 * storage, "lists storage '0'"),
        (["1"], storage, "lists storage '1'"),
        ([[]], storage, "lists storage a list"),
        (["0"], storage[:-1], "storage '0' is truncated"),
        (["0"], struct.pack("<q", 5) + SIX.tobytes(), "storage '0' is truncated, or does not"),
        (["0"], struct.pack("<q", -1) + SIX.tobytes(), "storage '0' is truncated, or does not"),
    ):
        assert message in refusal(write_legacy(path, tensor_pickle(), keys, content))


def test_compressed_entries_are_refused_unread(tmp_path):
    for entry in ("model/data.pkl", "model/data/0"):
        path = tmp_path / "bomb.pth"
        contents = {"model/data.pkl": tensor_pickle(), "model/data/0": SIX.tobytes()}
        contents[entry] = bytes(2**26)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                kind = zipfile.ZIP_DEFLATED if name == entry else zipfile.ZIP_STORED
                archive.writestr(name, content, compress_type=kind)
        assert f"entry '{entry}' is compressed" in refusal(path)


def test_other_archives(tmp_path):
    path = tmp_path / "a.pth"
    data = tensor_pickle()
    assert "has byte order b'big'" in refusal(write_archive(path, data, byteorder="big"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("b/data.pkl", data)
    assert "it contains 2 files data.pkl, expected 1" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/code/__torch__.py", "")
    assert "is a TorchScript program" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data/weights/weight_0", bytes(8))
        archive.writestr("a/models/model.json", "{}")
    assert "is a program of torch.export, which is not supported" in refusal(path)


def test_archives_with_long_numbers_and_comments(tmp_path, monkeypatch):
    """As in archives larger than 4 GiB, with Zip64 sizes and offsets."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.comment = b"by hand"
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
        for name, content in (("data.pkl", tensor_pickle()), ("data/0", SIX.tobytes())):
            entry = zipfile.ZipInfo(f"a/{name}")
            entry.extra, entry.comment = b"\xfe\xca\x02\x00ab", b"comment"
            archive.writestr(entry, content)
    assert path.read_bytes().count(b"\xff" * 8) >= 2
    assert_same(read_weights(path), {"a": SIX.reshape(2, 3)})


END_OF_ARCHIVE = "<4s4xHHIIH"


def with_directory(path, directory, count):
    """A zip archive with this central directory and little else."""
    end = struct.pack(END_OF_ARCHIVE, b"PK\5\6", count, count, len(directory), 4, 0)
    path.write_bytes(b"PK\3\4" + directory + end)
    return path


def most_memory(path):
    """Peak memory in bytes of rejecting a file, and the error message."""
    tracemalloc.start()
    try:
        message = refusal(path)
        return tracemalloc.get_traced_memory()[1], message
    finally:
        tracemalloc.stop()


def test_a_large_directory_takes_memory_in_proportion(tmp_path, monkeypatch):
    names = [b"a/%x" % number for number in range(50_000)]
    directory = b"".join(struct.pack("<4s24xH16x", b"PK\1\2", len(name)) + name for name in names)
    path = with_directory(tmp_path / "a.pth", directory, len(names))
    memory, message = most_memory(path)
    assert "it contains 0 files data.pkl" in message
    assert memory < 6 * path.stat().st_size
    # Whatever the archive says of their number.
    path = with_directory(tmp_path / "b.pth", directory, 1)
    memory, message = most_memory(path)
    assert "its directory does not have the declared size" in message
    assert memory < 2**20
    monkeypatch.setattr(pytorch_files, "MAX_ENTRIES", 49_999)
    memory, message = most_memory(tmp_path / "a.pth")
    assert message.endswith("is a zip archive of 50000 entries; at most 49999 are supported")
    assert memory < 2**20


def test_more_entries_than_any_archive_has(tmp_path):
    record = struct.pack("<4sQ12xQQQQ", b"PK\6\6", 44, 10**12, 10**12, 46 * 10**12, 4)
    locator = struct.pack("<4s4xQI", b"PK\6\7", 4, 1)
    end = struct.pack(END_OF_ARCHIVE, b"PK\5\6", 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    path = tmp_path / "a.pth"
    path.write_bytes(b"PK\3\4" + record + locator + end)
    assert "zip archive of 1000000000000 entries; at most 100000 are supported" in refusal(path)
    path.write_bytes(b"PK\3\4" + locator + end)
    assert "its Zip64 end record is missing" in refusal(path)
    path.write_bytes(b"PK\3\4" + end)
    assert "its directory is truncated or misplaced" in refusal(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "contains a list, expected names and tensors"),
        (None, "contains None, expected names and tensors"),
        ({}, "is an empty dictionary, expected names and tensors"),
        ({"a": 3}, "no dictionary of names and tensors; for example, under 'a' it contains 3"),
        ({"a": {"b": 3}}, "under 'a' it contains a dict"),
        ({"a": "x" * 1000}, "under 'a' it contains a str"),
        ({"a": 2**80}, "under 'a' it contains a large number"),
        ({"a": np.ones(2)}, "under 'a' it contains numpy.ndarray"),
        ({"a": Namespace(b=3)}, "under 'a' it contains argparse.Namespace"),
        ({"state_dict": {"a": 0.5}, "epoch": 3}, "under 'state_dict' it contains a dict"),
        ({"state": {}, "param_groups": []}, "contains the state of an optimizer"),
        ({3: 4}, "under '3' it contains 4"),
        ({None: 4}, "under 'None' it contains a value under the key None"),
        ({(1, 2): 4}, "under 'a tuple' it contains a value under the key a tuple"),
    ],
)
def test_other_values_than_tensors(value, message, tmp_path):
    data = pickle.dumps(value, 2)
    assert message in refusal(write_archive(tmp_path / "a.pth", data))
    assert message in refusal(write_legacy(tmp_path / "b.pth", data))


def test_dictionaries_as_python_2_wrote_them(tmp_path):
    pairs = b"](](" + instructions("a") + tensor_instructions() + b"ee"
    data = b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R."
    path = write_archive(tmp_path / "a.pth", data, _0=SIX.tobytes())
    assert_same(read_weights(path), {"a": SIX.reshape(2, 3)})


# Pickles with code in them


class Calls:
    """An object pickled as a function call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def marker(path):
    return f"open({str(path)!r}, 'w').close()"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: Calls(os.system, f"touch {path}"), f"{os.name}.system"),
        (lambda path: Calls(eval, marker(path)), "builtins.eval"),
        (lambda path: Calls(exec, marker(path)), "builtins.exec"),
        (lambda path: Calls(getattr, os, "system"), "builtins.getattr"),
        (lambda path: Calls(os.open, str(path), os.O_CREAT), f"{os.name}.open"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_among_the_weights_is_refused_by_name_and_not_executed(make, name, protocol, tmp_path):
    executed = tmp_path / "executed"
    if name == "builtins.getattr":
        data = b"\x80\x02cbuiltins\ngetattr\ncposix\nsystem\n\x85R."
    else:
        data = pickle.dumps({"weight": make(executed)}, protocol)
        pickle.loads(data)
        assert executed.exists()  # so this is what would happen
        executed.unlink()
    message = f"contains {name}"
    assert message in refusal(write_archive(tmp_path / "a.pth", data))
    assert message in refusal(write_legacy(tmp_path / "b.pth", data))
    (tmp_path / "c.bin").write_bytes(data)
    assert "is a pickle, but not one written by torch.save" in refusal(tmp_path / "c.bin")
    assert not executed.exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b".", "empty stack|end with one value"),
        (b"NN.", "end with one value"),
        (b"(N.", "end with one value"),
        (b"t.", "a mark that does not exist"),
        (b"\x85.", "pops from an empty stack"),
        (b"R.", "pops from an empty stack"),
        (b"q\x00.", "pops from an empty stack"),
        (b"h\x07.", "memo has no entry 7"),
        (b"j\xff\xff\xff\xff.", "memo has no entry 4294967295"),
        (b"NNs.", "empty stack"),
        (b"NNNs.", "SETITEMS to None"),
        (b"NNa.", "APPENDS to None"),
        (b"}(Nu.", "key without a value"),
        (b"]Nb.", "BUILD to a list"),
        (b"NQ.", "reference to a storage is not in PyTorch's form"),
        (b"NNR.", "call of a function is not in PyTorch's form"),
        (b"ctorch\nSize\nNR.", "call of a function is not in PyTorch's form"),
        (b"ccollections\nOrderedDict\n]NaR.", "call of a function is not in PyTorch's form"),
        (b"ccollections\nOrderedDict\n]Na\x85R.", "an item that is not a pair"),
        (b"NN\x93.", "a name that is not a string"),
        (b"ios\nsystem\n.", "a line of text"),
        (b"NR.", "empty stack"),
        (b"cos\nsystem\nNR.", "call of a function is not in PyTorch's form"),
        (b"cos\nsystem\n)R)RN\x85R]R.", "call of a function is not in PyTorch's form"),
        (b"N)\x81.", "call of a function is not in PyTorch's form"),
        (b"N)}\x92.", "call of a function is not in PyTorch's form"),
        (b"(o.", "call of a function is not in PyTorch's form"),
        (b"(No.", "call of a function is not in PyTorch's form"),
        (b"N(N\x90.", "ADDITEMS to None"),
        (b"0.", "empty stack"),
        (b"1.", "a mark that does not exist"),
        (2 * (b"X\x58\x02\0\0" + b"a" * 600) + b"\x93.", "a name that is too long"),
        (b"c\\x6fs\nsystem\n.", "a line of text"),
        (b"c" + b"a" * 2000 + b"\nb\n.", "a line of text"),
        (b"N\x81.", "empty stack"),
        (b"N2.", "the instruction DUP"),
        (b"\x82\x01.", "the instruction EXT1"),
        (b"I1\n.", "a line of text"),
        (b"\x8b\xff\xff\xff\x7f.", "is broken"),
        (b"X\xff\xff\xff\x7fabc.", "is broken"),
        (b"\x8d" + b"\xff" * 8 + b".", "is broken"),
        (b"X\x02\x00\x00\x00\xff\xff.", "is broken"),
        (b"\xff.", "is broken"),
        (b"N", "is broken"),
    ],
)
def test_broken_pickles(code, message):
    with pytest.raises(ValueError, match=message):
        pickles.read_pickle(b"\x80\x02" + code, 0)


def test_work_stays_proportional_to_the_length(monkeypatch):
    """Pickles that double, nest or repeat values are read quickly."""
    number = 20_000
    doubling = b")" + b"q\x00h\x00\x86" * number  # a tuple of twice the last, again and again
    nested = b"]" * number + b"a" * (number - 1)
    pairs = b"](" + (b"](" + instructions("a") + b"Ne") * number + b"e\x85q\x01"
    dictionaries = b"ccollections\nOrderedDict\nh\x01R" * number
    with earlier_objects_frozen(), takes_at_most(5):
        pickles.read_pickle(b"\x80\x02" + doubling + b".", 0)
        pickles.read_pickle(b"\x80\x02" + nested + b".", 0)
        pickles.read_pickle(b"\x80\x02Nr\xff\xff\xff\xff.", 0)
        value = pickles.read_pickle(b"\x80\x02}" + doubling + b"Ns.", 0).value
        assert list(value) == ["a tuple"]
        # Many dictionaries from one list of many pairs: the second finds it empty.
        value = pickles.read_pickle(b"\x80\x02(" + pairs + dictionaries + b"t.", 0).value
        assert list(map(len, value[1:4])) == [1, 0, 0]
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(ValueError, match="more than 1000 instructions"):
        pickles.read_pickle(b"\x80\x02" + nested + b".", 0)


def test_the_sound_files_are_sound(tmp_path):
    for name, files in sound_files().items():
        for file, content in files.items():
            (tmp_path / file).write_bytes(content)
        assert read_weights(tmp_path / next(iter(files))), name
    assert set(read_weights(tmp_path)) == {"conv.weight", "conv.bias", "steps"}
    assert save({}) != safetensors_bytes()
