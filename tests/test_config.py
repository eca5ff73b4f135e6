import json
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.small_runs import small_config

from flaxdl import Config, load_config
from flaxdl.config import differences, from_json, list_configs, to_json, with_defaults
from flaxdl.data import Arrays, Images
from flaxdl.models import SimpleCNN
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
        "class": "flaxdl.models.cnn.SimpleCNN",
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
    del earlier["rewind"], earlier["transform"]["rotation"], earlier["model"]["dropout"]
    completed = with_defaults(earlier)
    assert differences(completed, record) == ["model.dropout: 0.5 → 0.25"]
    assert from_json(earlier) == from_json(completed)
    own = {"class": "test_config.Mine", "nested": [{"class": "flaxdl.models.SimpleCNN"}]}
    assert with_defaults(own)["nested"] == [
        to_json(SimpleCNN()) | {"class": "flaxdl.models.SimpleCNN"}
    ]
    assert with_defaults({"class": 3}) == {"class": 3}


def test_a_field_that_no_longer_exists_is_named():
    record = to_json(full_config())
    record["optimizer"]["momentums"] = 0.5
    message = "the field 'momentums', which SGD does not have; did you mean 'momentum'?"
    with pytest.raises(ValueError, match=message):
        from_json(record)


@dataclass(frozen=True)
class Mine:
    size: int = 3


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "flaxdl.config.load_config",
        "test_config.Mine",
        "flaxdl.nothing.Here",
        "flaxdl.training.console.Column",  # rich's, which the module imports
        "flaxdl.training.console.ConsoleOptions",
        "flaxdl.training.console.Task",
        "flaxdl.training.optimizers.optax.GradientTransformation",
    ],
)
def test_only_public_classes_of_flaxdl_are_looked_up(name):
    with pytest.raises(ValueError, match=f"{name}.* no public class of flaxdl.*--config"):
        from_json({"class": name})


def test_arrays_in_memory_are_recorded_by_their_hash():
    first, second = (
        to_json(Arrays.from_memory(train_inputs=np.full(3, value))) for value in (1.0, 2.0)
    )
    assert first["path"] != second["path"]
    assert "arrays" not in first


def test_a_value_without_a_json_form_is_named():
    with pytest.raises(ValueError, match="a config holds numbers"):
        to_json({"key": object()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0.0}, "epochs must be positive, got 0.0"),
        ({"evaluate_every": float("nan")}, "evaluate_every must be positive, got nan"),
        ({"seed": -1}, "seed must not be negative, got -1"),
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
        ("x = 1\n", r"must define config = flaxdl.Config\(...\), but defines no config"),
        ("config = 3\n", "but config is a <class 'int'>"),
        ("import flaxdl.nothing\n", "failed with ModuleNotFoundError: .*flaxdl.nothing"),
        ("config = (\n", "failed with SyntaxError"),
    ],
)
def test_a_file_without_a_config_is_named(tmp_path, text, message):
    path = tmp_path / "faulty_config.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_answered_with_the_nearest(tmp_path, monkeypatch):
    (tmp_path / "digits_cnn.py").write_text("")
    with pytest.raises(ValueError, match=r"digit_cnn.py; did you mean '.*digits_cnn.py'\?"):
        load_config(tmp_path / "digit_cnn.py")
    with pytest.raises(ValueError, match=r"zzz\.py$"):
        load_config(tmp_path / "zzz.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_cnn.py").unlink()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits_rnn.py").write_text("")
    with pytest.raises(ValueError, match=r"digits_rnn; did you mean 'configs/digits_rnn.py'\?"):
        load_config("digits_rnn")


def test_configs_are_listed_without_being_run(tmp_path):
    (tmp_path / "one.py").write_text('"""What it does.\n\nMore."""\nraise SystemExit\n')
    assert list_configs(tmp_path) == {str(tmp_path / "one.py"): "What it does."}
