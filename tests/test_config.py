import dataclasses
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from helpers.small_runs import small_config

from flaxdl import Config, UserError, load_config
from flaxdl.config_files import find_config, list_configs
from flaxdl.data import Arrays, Images, Tfds
from flaxdl.models import SimpleCNN
from flaxdl.runs.config_json import differences, from_json, to_json, upgraded
from flaxdl.runs.workdir import Workdir
from flaxdl.training import SGD, Cosine, Selection

pytestmark = pytest.mark.quick


def full_config():
    return Config(
        model=SimpleCNN(num_classes=7, dropout=0.25),
        data=Arrays("data.npz"),
        transform=Images(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), flip=True),
        optimizer=SGD(schedule=Cosine(warmup_steps=5), no_decay=("*.bias",), clip_norm=2.0),
        selection=Selection(metric="loss", patience=3),
        precision="bfloat16",
        epochs=2.5,
    )


def test_a_config_survives_json():
    record = json.loads(json.dumps(to_json(full_config())))
    assert from_json(record) == full_config()
    assert record["model"] == {
        "class": "flaxdl.models.SimpleCNN",
        "num_classes": 7,
        "dropout": 0.25,
    }


def test_differences_are_listed_by_field():
    old = to_json(full_config())
    new = json.loads(json.dumps(old))
    new["optimizer"]["schedule"]["warmup_steps"] = 9
    new["seed"] = 1
    assert differences(old, new) == ["optimizer.schedule.warmup_steps: 5 → 9", "seed: 0 → 1"]
    assert differences(old, old) == []


def test_fields_that_a_record_lacks_get_their_defaults():
    record = to_json(full_config())
    earlier = json.loads(json.dumps(record))
    del earlier["spike_recovery"], earlier["transform"]["rotation"], earlier["model"]["dropout"]
    completed = upgraded(earlier)
    assert differences(completed, record) == ["model.dropout: 0.5 → 0.25"]
    assert from_json(earlier) == from_json(completed)
    own = {"class": "test_config.Mine", "nested": [{"class": "flaxdl.models.SimpleCNN"}]}
    assert upgraded(own)["nested"] == [to_json(SimpleCNN()) | {"class": "flaxdl.models.SimpleCNN"}]
    assert upgraded({"class": 3}) == {"class": 3}


def test_a_field_that_no_longer_exists_is_named():
    record = to_json(full_config())
    record["optimizer"]["momentums"] = 0.5
    message = "the field 'momentums', which SGD does not have; did you mean 'momentum'?"
    with pytest.raises(ValueError, match=message):
        from_json(record)


def test_a_field_may_say_what_runs_had_before_it_existed(monkeypatch, tmp_path):
    facts = {"classes": None, "steps_per_epoch": 1, "example": {}}
    folder = Workdir(tmp_path)
    folder.claim(full_config(), facts)
    file = tmp_path / "config.json"
    record = json.loads(file.read_text())
    del record["config"]["transform"]["rotation"]
    file.write_text(json.dumps(record))
    folder.check_config(full_config(), accept_changes=False)
    assert folder.config() == full_config()
    rotation = next(f for f in dataclasses.fields(Images) if f.name == "rotation")
    monkeypatch.setattr(rotation, "metadata", MappingProxyType({"earlier": 90.0}))
    turned = dataclasses.replace(full_config().transform, rotation=90.0)
    assert folder.config() == dataclasses.replace(full_config(), transform=turned)
    with pytest.raises(ValueError, match=r"transform\.rotation: 90\.0 → 0\.0"):
        folder.check_config(full_config(), accept_changes=False)


@dataclass(frozen=True)
class Mine:
    size: int = 3
    sides: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Holder:
    inner: object
    several: tuple = ()


def test_fields_that_were_added_to_a_class_of_the_users_own_get_their_defaults():
    config = Holder(Mine(), (Mine(4), Mine(5)))
    record = to_json(config)
    del record["inner"]["sides"], record["several"][1]["sides"]
    assert upgraded(record, config) == to_json(config)
    assert "sides" not in upgraded(record)["inner"]  # nothing is known of the class
    del record["several"][0]
    assert upgraded(record, config)["inner"] == to_json(Mine())  # other tuples do not matter


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "flaxdl.config_files.load_config",
        "test_config.Mine",
        "flaxdl.nothing.Here",
        "flaxdl.training.writers.console.Column",  # rich's, which the module imports
        "flaxdl.training.writers.console.ConsoleOptions",
        "flaxdl.training.writers.console.Task",
        "flaxdl.training.optimizers.optax.GradientTransformation",
    ],
)
def test_only_public_classes_of_flaxdl_are_looked_up(name):
    with pytest.raises(ValueError, match=f"{name}.* not a public class of flaxdl.*--config"):
        from_json({"class": name})


def test_arrays_in_memory_are_recorded_by_their_hash():
    first, second = (
        to_json(Arrays.from_memory(train_inputs=np.full(3, value))) for value in (1.0, 2.0)
    )
    assert first["path"] != second["path"]
    assert "arrays" not in first


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            object(),
            r"\['key'\]: a config can hold numbers, strings, tuples and dataclasses, got <object",
        ),
        (Holder(len), r"inner: a config can hold .* \(a builtin_function_or_method\)"),
        (Holder(Mine(), (1, {2})), r"several\[1\]: a config can hold .*, got \{2\} \(a set\)"),
        (Holder(Mine(np.arange(3))), r"inner.size: a config can hold .* \(a ndarray\)"),
        (Holder(Mine(1 + 2j)), r"inner.size: a config can hold .* \(a complex\)"),
        (Holder(np.datetime64("2026-01-01")), r"inner: a config can hold .* \(a datetime64\)"),
        (Holder(Mine(float("nan"))), r"inner.size must be a number, got nan"),
        (Holder(np.float32("nan")), r"inner must be a number, got nan"),
    ],
)
def test_a_field_without_a_json_form_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        to_json({"key": value} if type(value) is object else value)


def test_numpy_numbers_become_those_of_python():
    config = full_config()
    numpy = Config(
        model=SimpleCNN(num_classes=np.int64(7), dropout=np.float32(0.25)),
        data=config.data,
        transform=Images(
            mean=(np.float64(0.1), 0.2, np.float64(0.3)), std=(1.0, 2.0, 3.0), flip=np.bool_(True)
        ),
        optimizer=SGD(
            schedule=Cosine(warmup_steps=np.uint8(5)), no_decay=(np.str_("*.bias"),), clip_norm=2.0
        ),
        selection=config.selection,
        precision="bfloat16",
        epochs=np.float16(2.5),
    )
    assert to_json(numpy) == to_json(config)
    values = [numpy.model.num_classes, numpy.model.dropout, numpy.transform.mean[0]]
    values += [numpy.transform.flip, numpy.optimizer.schedule.warmup_steps, numpy.epochs]
    assert [type(value) for value in values] == [int, float, float, bool, int, float]
    assert numpy.data is config.data  # what has no NumPy numbers is not copied
    assert to_json({"rate": np.float32(0.5)}) == {"rate": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0.0}, "epochs must be positive and finite, got 0.0"),
        ({"evaluate_every": float("nan")}, "evaluate_every must be positive and finite, got nan"),
        ({"epochs": float("inf")}, "epochs must be positive and finite, got inf"),
        ({"evaluate_every": np.inf}, "evaluate_every must be positive and finite, got inf"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*63 - 1, got -1"),
        ({"seed": 2**63}, r"seed must be from 0 to 2\*\*63 - 1, got 9223372036854775808"),
        ({"seed": 1.5}, r"seed must be an integer, got 1\.5"),
        ({"seed": True}, "seed must be an integer, got True"),
        ({"epochs": "3"}, "epochs must be a number, got '3'"),
        ({"epochs": True}, "epochs must be a number, got True"),
        ({"freeze_epochs": "1"}, "freeze_epochs must be a number or None, got '1'"),
        ({"log_every": 2.5}, r"log_every must be an integer or None, got 2\.5"),
        ({"keep_checkpoints": 1.5}, r"keep_checkpoints must be an integer, got 1\.5"),
        ({"batch_size": 32.5}, r"batch_size must be an integer, got 32\.5"),
        ({"precision": "fp16"}, "precision must be 'float32' or .* or 'float16', got 'fp16'"),
        ({"parallel": "xx"}, "parallel must be 'jit' or 'pmap', got 'xx'"),
        ({"parallel": ["jit"]}, r"parallel must be 'jit' or 'pmap', got \['jit'\]"),
        ({"freeze": "layer1.*"}, r"freeze must be a tuple of strings, got 'layer1\.\*'"),
        ({"freeze": (1,)}, r"freeze must be a tuple of strings, got \(1,\)"),
        ({"model": SimpleCNN}, "model must be a Linen module, got <class .*SimpleCNN'>"),
        ({"data": "path"}, "data must be a Source, got 'path'"),
        ({"optimizer": "adam"}, "optimizer must be an Optimizer, got 'adam'"),
        ({"transform": None}, "transform must be a Transform, got None"),
        ({"task": None}, "task must be a Task, got None"),
        ({"init": "resnet50"}, "init must be an Init, got 'resnet50'"),
        ({"ema": 0.999}, "ema must be an EMA, got 0.999"),
        ({"selection": None}, "selection must be a Selection, got None"),
        ({"mesh": None}, "mesh must be a MeshShape, got None"),
        ({"spike_recovery": None}, "spike_recovery must be a SpikeRecovery, got None"),
    ],
)
def test_impossible_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_a_config_file_may_define_classes_of_its_own(tmp_path):
    (tmp_path / "own_config.py").write_text(
        '"""Own."""\n'
        "from dataclasses import dataclass\n"
        "from flaxdl import Config\n"
        "from flaxdl.data import Arrays\n"
        "from flaxdl.models import SimpleCNN\n"
        "@dataclass(frozen=True)\n"
        "class Other(Arrays):\n"
        "    extra: int = 3\n"
        "config = Config(model=SimpleCNN(), data=Other('x.npz'))\n"
    )
    config = load_config(tmp_path / "own_config.py")
    assert to_json(config)["data"]["class"] == "own_config.Other"
    assert to_json(config)["data"]["extra"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"must define config = flaxdl.Config\(...\), but does not"),
        ("config = 3\n", "but config is of type int"),
        (
            "import flaxdl.nothing\n",
            r"py, line 1: ModuleNotFoundError: No module named .flaxdl\.nothing",
        ),
        ("config = (\n", r"py, line 1: SyntaxError: .* was never closed"),
    ],
)
def test_a_file_without_a_config_is_named(tmp_path, text, message):
    path = tmp_path / "faulty_config.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


CONFIG = """from flaxdl import Config
from flaxdl.data import Arrays
from flaxdl.models import SimpleCNN
config = Config(model=SimpleCNN(), data=Arrays('x.npz'))
"""


@pytest.mark.parametrize("name", ["grain", "filelock", "random", "flaxdl", "jax"])
def test_a_config_file_does_not_replace_a_module(tmp_path, name):
    before = dict(sys.modules)
    (tmp_path / f"{name}.py").write_text(CONFIG)
    with pytest.raises(ValueError, match=f"cannot be called {name}.py.*module '{name}'; rename it"):
        load_config(tmp_path / f"{name}.py")
    assert sys.modules == before
    assert str(tmp_path) not in sys.path


def test_files_beside_a_config_come_before_those_of_the_working_folder(tmp_path, monkeypatch):
    for folder, size in ((tmp_path, 2), (tmp_path / "experiment", 3)):
        folder.mkdir(exist_ok=True)
        (folder / "module_of_networks.py").write_text(f"size = {size}")
    config = tmp_path / "experiment" / "with_networks.py"
    config.write_text("import module_of_networks\n" + CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_config(config)
    assert sys.modules["module_of_networks"].size == 3


def test_files_beside_a_config_do_not_replace_a_module(tmp_path):
    (tmp_path / "filelock.py").write_text("")
    (tmp_path / "beside_own_rice.py").write_text("size = 3")
    (tmp_path / "own_rice.py").write_text("import beside_own_rice\n" + CONFIG)
    load_config(tmp_path / "own_rice.py")
    assert sys.modules["beside_own_rice"].size == 3
    found = importlib.util.find_spec("filelock")
    assert found is not None
    assert not str(found.origin).startswith(str(tmp_path))


def test_of_equal_names_the_module_loaded_last_is_found(tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "same_name.py").write_text(CONFIG)
        load_config(tmp_path / str(number) / "same_name.py")
        del sys.modules["same_name"]  # as in a worker process
        found = importlib.util.find_spec("same_name")
        assert found is not None
        assert found.origin == str(tmp_path / str(number) / "same_name.py")


def test_a_file_that_fails_is_forgotten(tmp_path):
    path = tmp_path / "mended_config.py"
    for text in ("x = 1", "config = (", "import flaxdl.nothing"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"mended_config\.py( must define|, line 1: )"):
            load_config(path)
        assert "mended_config" not in sys.modules
    path.write_text(CONFIG)
    assert load_config(path) == load_config(path)


def test_a_missing_file_is_answered_with_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "digits_cnn.py").write_text("")
    listed = r"`flaxdl train --list` shows what there is$"
    with pytest.raises(
        UserError, match=rf"digit_cnn.py; did you mean '{tmp_path}/digits_cnn.py'\?"
    ):
        load_config(tmp_path / "digit_cnn.py")
    with pytest.raises(UserError, match=rf"zzz\.py; {listed}"):
        load_config(tmp_path / "zzz.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_cnn.py").unlink()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits_own.py").write_text("")
    for name, near in (
        ("digits_onw", "configs/digits_own.py"),
        ("digit_cnn", "digits_cnn"),
        ("configs/digits_cnn.py", "digits_cnn"),  # as a clone has it
    ):
        with pytest.raises(UserError, match=rf"{name}; did you mean '{near}'\? {listed}"):
            load_config(name)


def test_a_name_leads_to_the_nearest_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = find_config("digits_cnn")
    assert (packaged.is_absolute(), packaged.name) == (True, "digits_cnn.py")
    assert load_config("digits_cnn").data == Tfds("digits")
    for file in (Path("configs/digits_cnn.py"), Path("digits_cnn.py")):
        file.parent.mkdir(exist_ok=True)
        file.write_text(CONFIG)
        assert find_config("digits_cnn") == file
        assert load_config("digits_cnn").data == Arrays("x.npz")
    assert find_config(packaged) == packaged
    (tmp_path / "LICENSE").write_text("")
    with pytest.raises(UserError, match=r"must end in \.py, got LICENSE"):
        load_config("LICENSE")


def test_configs_are_listed_without_being_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = '"""What it does.\n\nMore."""\nraise SystemExit\n'
    Path("configs").mkdir()
    for name in ("one", "digits_cnn"):
        Path(f"configs/{name}.py").write_text(text)
    Path("digits_rnn.py").write_text(text)
    listed = list_configs()
    assert list(listed)[:3] == ["configs/digits_cnn.py", "configs/one.py", "cifar10_cnn"]
    own = {name for name, line in listed.items() if line == "What it does."}
    # The names of packaged configs that lead to files of this folder.
    assert own == {"configs/digits_cnn.py", "configs/one.py", "digits_cnn", "digits_rnn"}
