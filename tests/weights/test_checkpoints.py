"""Checkpoints of training scripts: selection of the weights among other objects."""

import argparse
import collections
import datetime
import enum
import functools
import os
import pathlib
import pickle
import random
import sys
import tracemalloc
import uuid

import numpy as np
import pytest
from helpers.processor_time import earlier_objects_frozen, takes_at_most
from helpers.pytorch_pickles import (
    SIX,
    WEIGHTS,
    dictionary,
    instructions,
    storage_instructions,
    tensor_instructions,
    write_archive,
    write_checkpoint,
    write_legacy_checkpoint,
)

from flaxdl.weights import members, read_weights, write_weights
from flaxdl.weights.members import select_weights
from flaxdl.weights.pickles import OpaqueObject, Storage, Tensor, read_pickle

EXPECTED = {"a": SIX.reshape(2, 3)}


class Settings(dict):
    """A dictionary with attributes, like those of Lightning's hyperparameters."""


class Color(enum.Enum):
    RED = 1


Pair = collections.namedtuple("Pair", "first second")


class Slots:
    __slots__ = ("value",)

    def __init__(self):
        self.value = [1]


def itself():
    """A list and a tuple that contain each other."""
    values = []
    values.append((values, 1, 2, 3))
    values.append((values,))
    return values[1]


def attributes(value, **more):
    vars(value).update(more)
    return value


BESIDE = {
    "namespace": argparse.Namespace(rate=0.1, out=pathlib.Path("x"), ids={1, 2}),
    "path": pathlib.Path("runs/x"),
    "windows path": pathlib.PureWindowsPath("C:/runs"),
    "NumPy numbers": [np.float64(0.9), np.int64(3), np.bool_(True), np.float32(1)],
    "NumPy array": np.arange(3.0),
    "NumPy texts": np.array(["a", None], object),
    "NumPy dtype": np.dtype("float32"),
    "NumPy random state": np.random.RandomState(0).get_state(),
    "NumPy generator": np.random.default_rng(0),
    "random state": random.Random(0).getstate(),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], 3),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "ordered": collections.OrderedDict(a=1),
    "named tuple": Pair(1, [2]),
    "sets": [{1, 2}, set(), frozenset({3})],
    "times": [datetime.datetime(2020, 1, 1), datetime.timedelta(1), datetime.date(2020, 1, 1)],
    "complex": 1 + 2j,
    "bytes": [b"abc", bytearray(b"abc"), b"x" * 300],
    "large number": [2**80, -(2**80)],
    "keys": {(1, 2): 3, None: 4, 0.5: 5, b"a": 6, True: 7, -1: 8, frozenset({1}): 9},
    "functions": [len, os.path.join, functools.partial(print, end="")],
    "class": argparse.Namespace,
    "enum": Color.RED,
    "slots": Slots(),
    "settings": attributes(Settings(rate=0.1), frozen=True),
    "holds itself": itself(),
    "unique id": uuid.UUID(int=1),
    "slice": slice(1, 2),
    "error": ValueError("x"),
}


def assert_same(ours, theirs=EXPECTED):
    assert list(ours) == list(theirs)
    for key, array in ours.items():
        assert array.dtype == theirs[key].dtype
        np.testing.assert_array_equal(array, theirs[key])


def refusal(path):
    with pytest.raises(ValueError, match=": ") as error:
        read_weights(path)
    return str(error.value)


# What stands beside the weights


@pytest.mark.parametrize("kind", BESIDE)
def test_objects_beside_the_weights_are_passed_over(kind, tmp_path):
    path = tmp_path / "a.pth"
    beside = instructions(BESIDE[kind])
    write_checkpoint(path, beside=beside, state_dict=WEIGHTS, epoch=b"K\x03")
    assert_same(read_weights(path))
    write_legacy_checkpoint(path, net=WEIGHTS, beside=beside)
    assert_same(read_weights(path))
    for protocol in (2, 3, 4, 5):  # the last two have instructions of their own
        value = read_pickle(pickle.dumps({"beside": BESIDE[kind], "a": 3}, protocol), 0).value
        assert list(value) == ["beside", "a"]


def test_what_pytorch_puts_beside_the_weights(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]).state_dict(),
        "rng": [torch.get_rng_state(), torch.Generator().get_state()],
        "kinds": [torch.device("cpu"), torch.float32, torch.Size([1, 2])],
        "storage": torch.ones(3).untyped_storage(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "uint16": torch.ones(2, dtype=torch.uint16),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(2, device="meta"),
        "model": torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)),
    }
    expected = {key: value.numpy() for key, value in model.state_dict().items()}
    path = tmp_path / "a.pth"
    for protocol in (2, 5):
        torch.save(beside | {"state_dict": model.state_dict()}, path, pickle_protocol=protocol)
        assert_same(read_weights(path), expected)
    whole = beside | {"net": model.state_dict()}
    torch.save(whole, path, _use_new_zipfile_serialization=False)
    assert_same(read_weights(path), expected)


def test_tensors_with_attributes_are_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.zeros(3))
    tensor.note, parameter.note = "a", "b"
    torch.save({"tensor": tensor, "parameter": parameter}, tmp_path / "a.pth")
    expected = {"tensor": np.ones(2, np.float32), "parameter": np.zeros(3, np.float32)}
    assert_same(read_weights(tmp_path / "a.pth"), expected)


@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (instructions(argparse.Namespace(a=1)), "argparse.Namespace"),
        (instructions(np.float64(0.9)), "numpy.*scalar"),
        (instructions(np.arange(3)), "numpy.ndarray"),
        (instructions({1}), "builtins.set"),
        (b"ctorch\nfloat32\n", "torch.float32"),
        (b"K\x07", "7"),
        (b"N", "None"),
    ],
)
@pytest.mark.parametrize("key", ["model", "net", None])
def test_objects_inside_the_weights_are_named(evil, name, key, tmp_path):
    path = tmp_path / "a.pth"
    items = {"a": tensor_instructions(), "b": tensor_instructions(), "evil": evil}
    where = "evil" if key is None else f"{key}.evil"
    write_checkpoint(path, **(items if key is None else {key: dictionary(**items)}))
    message = f"contains {name} under '{where}', expected only tensors"
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read_weights(path)


class Calls:
    """An object pickled as a function call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_beside_the_weights_is_executed_or_imported(tmp_path):
    executed = tmp_path / "executed"
    code = f"open({str(executed)!r}, 'w').close()"
    evil = {
        "system": instructions(Calls(os.system, f"touch {executed}")),
        "eval": instructions(Calls(eval, code)),
        "nested": instructions(Calls(getattr, Calls(exec, code), "a")),
        "set": instructions({Calls(exec, code)}),
        "key": instructions({Calls(exec, code): 1}),
        "method": instructions(Calls(pathlib.Path.touch, executed)),
        "import": b"cthis\ns\n)R",
        "object": b"cantigravity\ngeohash\n)\x81}b",
        "old": b"(cthis\ns\nNo",
    }
    for name in ("system", "eval", "set", "method"):
        pickle.loads(b"\x80\x02" + evil[name] + b".")
        executed.unlink()  # so this is what would happen
    path = tmp_path / "a.pth"
    write_checkpoint(path, **evil, state_dict=WEIGHTS)
    assert_same(read_weights(path))
    write_legacy_checkpoint(path, **evil, net=WEIGHTS)
    assert_same(read_weights(path))
    for code in evil.values():
        write_checkpoint(path, model=dictionary(a=tensor_instructions(), evil=code))
        assert "under 'model.evil', expected only tensors" in refusal(path)
    assert not executed.exists()
    assert not {"this", "antigravity"} & sys.modules.keys()


@pytest.mark.parametrize(
    "beside",
    [
        # Dictionaries and lists of which each holds the last one twice.
        b"}q\x01" + b"}(K\x01h\x01K\x02h\x01uq\x01" * 5_000,
        b"]q\x01" + b"](h\x01h\x01eq\x01" * 5_000,
        b"]" * 20_000 + b"a" * 19_999,  # nested as deeply
        b"](" + b"}" * 10_000 + b"e",
        b"}q\x01](" + b"h\x01" * 10_000 + b"e",
        b"cargparse\nNamespace\nq\x01](" + b"h\x01)\x81" * 20_000 + b"e",
        b"X\x00\x00\x01\x00" + b"k" * 2**16 + b"q\x01}q\x02](" + b"}h\x01h\x02s" * 10_000 + b"e",
    ],
)
def test_what_stands_beside_costs_in_proportion(beside, tmp_path):
    beside = b"(" + beside + b"t"
    path = write_checkpoint(tmp_path / "a.pth", beside=beside, net=WEIGHTS, more=WEIGHTS)
    with earlier_objects_frozen(), takes_at_most(5):  # with the tracing, which takes most of it
        tracemalloc.start()
        try:
            assert "contains several dictionaries of tensors: net, more" in refusal(path)
            memory = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert memory < 100 * path.stat().st_size + 2**25


def test_only_so_many_values_are_searched(monkeypatch):
    monkeypatch.setattr(members, "MAX_MEMBERS", 1000)
    tensor = Tensor(Storage("0", np.dtype(np.float32), 6), 0, (6,), (1,))
    many = [[] for _ in range(1000)]
    assert select_weights({"net": {"a": tensor}, "many": many}) == {"a": tensor}
    with pytest.raises(ValueError, match="under 'many' it contains a list"):
        select_weights({"many": many, "net": {"b": {"a": tensor}}})


# Which weights are meant


@pytest.mark.parametrize(
    "key",
    ["net", "weights", "model_state", "ema", "params", "module", "network", "generator", "0"],
)
def test_the_only_dictionary_of_tensors_is_found(key, tmp_path):
    path = tmp_path / "a.pth"
    write_checkpoint(path, **{key: WEIGHTS}, score=b"K\x07", best=tensor_instructions())
    assert_same(read_weights(path))
    write_legacy_checkpoint(path, epoch=b"K\x03", run=dictionary(nets=b"]" + WEIGHTS + b"a"))
    assert_same(read_weights(path))
    assert_same(read_weights(f"{path}:run.nets.0"))


def test_what_is_never_meant_for_weights():
    tensor = Tensor(Storage("0", np.dtype(np.float32), 6), 0, (6,), (1,))
    number = Tensor(Storage("0", np.dtype(np.float32), 6), 0, (), ())
    weights = {"a": tensor, "number": number}
    checkpoint = {
        "net": weights,
        "optimizers": [{"state": {"0": {"exp_avg": tensor}}, "param_groups": []}],
        "best_k_models": {"a.ckpt": number, "b.ckpt": number},
        "random": tensor,
        "cuda_random": tensor,
        "shadow": [tensor, tensor],
    }
    assert select_weights(checkpoint) is weights
    assert select_weights(weights) is weights
    assert select_weights({"number": number}) == {"number": number}
    assert select_weights([weights, 3]) is weights


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_usual_keys_come_first(key, tmp_path, caplog):
    path = tmp_path / "a.pth"
    write_checkpoint(path, **{key: WEIGHTS}, epoch=b"K\x03")
    assert_same(read_weights(path))
    assert not caplog.records
    other = dictionary(b=tensor_instructions())
    write_checkpoint(
        path, epoch=b"K\x03", ema=dictionary(net=other, decay=b"K\x07"), **{key: WEIGHTS}
    )
    assert_same(read_weights(path))
    assert f"read the weights under '{key}'; to read others, use FILE:ema.net" in caplog.text
    caplog.clear()
    assert_same(read_weights(f"{path}:ema.net"), {"b": SIX.reshape(2, 3)})
    assert_same(read_weights(f"{path}:{key}"))
    assert not caplog.records


def test_one_of_several_is_named(tmp_path):
    path = tmp_path / "a.pth"
    other = dictionary(b=tensor_instructions())
    write_checkpoint(path, student=WEIGHTS, more=dictionary(teacher=other), epoch=b"K\x03")
    assert refusal(path) == (
        f"{path}: contains several dictionaries of tensors: student, more.teacher; "
        "append one of these names to the path, such as FILE:more.teacher"
    )
    assert_same(read_weights(f"{path}:student"))
    assert_same(read_weights(f"{path}:more.teacher"), {"b": SIX.reshape(2, 3)})
    message = refusal(f"{path}:studnet")
    assert message.endswith(
        "contains no dictionary under 'studnet'; tensors are under student, more.teacher; "
        "did you mean 'student'?"
    )
    assert "under 'more.teacher' it contains" not in refusal(f"{path}:more")
    assert "contains a dict under 'more.teacher', expected only tensors" in refusal(f"{path}:more")
    write_checkpoint(path, model=WEIGHTS, state_dict=WEIGHTS)
    assert "tensors: model, state_dict; append one of these names" in refusal(path)
    write_checkpoint(path, model=instructions({"name": "linear"}), state_dict=WEIGHTS)
    assert_same(read_weights(path))
    write_archive(path, b"\x80\x02" + WEIGHTS + b".", _0=SIX.tobytes())
    assert "no dictionary under 'ema'; it contains only tensors" in refusal(f"{path}:ema")


def test_names_in_messages_hold_no_control_characters(tmp_path):
    path = write_checkpoint(tmp_path / "a.pth", **{"a\x1b[2J": WEIGHTS, "b\n": WEIGHTS})
    assert "of tensors: a\\x1b[2J, b\\n; append" in refusal(path)
    key = "x" * 10_000
    write_checkpoint(path, **{key: WEIGHTS, "y": dictionary(**{key: WEIGHTS})})
    assert len(refusal(path)) < 1000


def test_an_existing_path_wins_over_a_name_behind_a_colon(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    other = dictionary(b=tensor_instructions())
    write_checkpoint(tmp_path / "a.pth", student=WEIGHTS, teacher=other)
    assert_same(read_weights("~/a.pth:student"))
    write_checkpoint(tmp_path / "a.pth:student", net=other)
    assert_same(read_weights("~/a.pth:student"), {"b": SIX.reshape(2, 3)})
    assert_same(read_weights("~/a.pth:student:net"), {"b": SIX.reshape(2, 3)})
    assert refusal(tmp_path / "b.pth:net").endswith("b.pth:net: does not exist")
    assert "a.pth:: does not exist" in refusal(tmp_path / "a.pth:")
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.pth").rename(tmp_path / "folder" / "pytorch_model.bin")
    assert_same(read_weights("~/folder:student"))
    write_weights({"a": np.ones(2)}, "~/b.safetensors")
    assert (tmp_path / "b.safetensors").exists()
    message = "b.safetensors: contains a single set of tensors, so 'ema' cannot select one"
    assert message in refusal("~/b.safetensors:ema")
    assert refusal("~nobody-of-this-name/a.pth").endswith("does not exist")


def test_weights_beside_a_whole_model_are_read_and_it_is_said(tmp_path, caplog):
    state = b"}" + instructions("_parameters") + b"}s" + instructions("_modules") + b"}s"
    model = b"cmodels\nNet\n)\x81" + state + b"b"
    path = write_checkpoint(tmp_path / "a.pth", model=model, ema=WEIGHTS)
    assert_same(read_weights(path))
    message = "read the weights under 'ema'; the whole model under 'model' cannot be read"
    assert caplog.messages == [message]
    assert_same(read_weights(f"{path}:ema"))
    write_checkpoint(path, net=model, state_dict=WEIGHTS)
    assert_same(read_weights(path))
    assert caplog.messages == [message]


def test_whole_models_are_named_as_such(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    name = "torch.nn.modules.container.Sequential"
    remedy = "which only its own code can build; load it with PyTorch and save model.state_dict()"
    for options in ({}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}):
        torch.save(model, path, **options)
        assert refusal(path) == f"{path}: contains a whole model, a {name}, {remedy}"
        torch.save({"epoch": 3, "ema": {"model": model}}, path, **options)
        assert f"contains a whole model under 'ema.model', a {name}, " in refusal(path)
    state = b"}" + instructions("_parameters") + b"}s" + instructions("_modules") + b"}s"
    write_archive(path, b"\x80\x02cmodels\nNet\n)\x81" + state + b"b.")
    assert "contains a whole model, a models.Net, " in refusal(path)
    write_archive(path, b"\x80\x02cmodels\nNet\n)\x81}b.")
    assert refusal(path) == f"{path}: contains models.Net, expected names and tensors"


def test_a_storage_of_another_kind_is_named(tmp_path):
    strange = tensor_instructions(storage=storage_instructions(kind="QInt8Storage"))
    write_checkpoint(tmp_path / "a.pth", net=dictionary(a=tensor_instructions(), q=strange))
    assert "contains torch.QInt8Storage under 'net.q'" in refusal(tmp_path / "a.pth")
    write_checkpoint(tmp_path / "a.pth", net=WEIGHTS, beside=strange)
    assert_same(read_weights(tmp_path / "a.pth"))


def test_foreign_objects_keep_their_name_alone():
    value = read_pickle(pickle.dumps(argparse.Namespace(secret="x" * 1000), 2), 0).value
    assert value == OpaqueObject("argparse.Namespace")
    assert "xxx" not in repr(value)
