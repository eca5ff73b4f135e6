"""config.json stores public names, and reads what earlier versions stored."""

import dataclasses
import json
import subprocess
import sys

import pytest

import flaxdl
from flaxdl import data, layers, models, training
from flaxdl.data import Arrays, Images, Text, TextTable
from flaxdl.models import SimpleCNN
from flaxdl.models.bert import BertLayer
from flaxdl.runs import config_json
from flaxdl.runs.config_json import class_name, from_json, to_json, upgraded

pytestmark = pytest.mark.quick

PACKAGES = {
    "flaxdl": flaxdl,
    "flaxdl.data": data,
    "flaxdl.layers": layers,
    "flaxdl.models": models,
    "flaxdl.training": training,
}
# As commit 1a4c004 stored them, whose runs are in tests/earlier_runs, and those of later modules.
EARLIER = {
    "flaxdl.config.Config": "flaxdl.Config",
    "flaxdl.config.Init": "flaxdl.Init",
    "flaxdl.data.arrays.Arrays": "flaxdl.data.Arrays",
    "flaxdl.data.dates.Dates": "flaxdl.data.Dates",
    "flaxdl.data.documents.Documents": "flaxdl.data.Documents",
    "flaxdl.data.image_folder.ImageFolder": "flaxdl.data.ImageFolder",
    "flaxdl.data.images.ImageRows": "flaxdl.data.ImageRows",
    "flaxdl.data.images.Images": "flaxdl.data.Images",
    "flaxdl.data.text.Text": "flaxdl.data.Text",
    "flaxdl.data.text_pairs.TextPairs": "flaxdl.data.TextPairs",
    "flaxdl.data.text_table.TextTable": "flaxdl.data.TextTable",
    "flaxdl.data.tfds.Tfds": "flaxdl.data.Tfds",
    "flaxdl.data.transforms.Transform": "flaxdl.data.Transform",
    "flaxdl.layers.recurrent.LSTM": "flaxdl.layers.LSTM",
    "flaxdl.layers.attention.MultiHeadAttention": "flaxdl.layers.MultiHeadAttention",
    "flaxdl.models.alexnet.AlexNet": "flaxdl.models.AlexNet",
    "flaxdl.models.bert.BertForSequenceClassification": (
        "flaxdl.models.BertForSequenceClassification"
    ),
    "flaxdl.models.cnn.SimpleCNN": "flaxdl.models.SimpleCNN",
    "flaxdl.models.lenet.LeNet5": "flaxdl.models.LeNet5",
    "flaxdl.models.resnet.ResNet50": "flaxdl.models.ResNet50",
    "flaxdl.models.rnn.TextRNN": "flaxdl.models.TextRNN",
    "flaxdl.models.transformer.TransformerLM": "flaxdl.models.TransformerLM",
    "flaxdl.models.vgg.VGG16": "flaxdl.models.VGG16",
    "flaxdl.training.optimizers.AdamW": "flaxdl.training.AdamW",
    "flaxdl.training.optimizers.Cosine": "flaxdl.training.Cosine",
    "flaxdl.training.Rewind": "flaxdl.training.SpikeRecovery",
    "flaxdl.training.rewind.Rewind": "flaxdl.training.SpikeRecovery",
    "flaxdl.training.selection.Selection": "flaxdl.training.Selection",
    "flaxdl.training.tasks.LanguageModeling": "flaxdl.training.LanguageModeling",
}


def public_dataclasses():
    return {
        f"{package}.{name}": getattr(module, name)
        for package, module in PACKAGES.items()
        for name in module.__all__
        if dataclasses.is_dataclass(getattr(module, name))
    }


def test_classes_are_stored_under_the_names_that_users_import():
    for name, found in public_dataclasses().items():
        assert class_name(found) == name


def test_moving_a_class_to_another_module_changes_no_file(monkeypatch):
    before = to_json(SimpleCNN(num_classes=3))
    monkeypatch.setattr(SimpleCNN, "__module__", "flaxdl.models.convolutional.simple")
    assert to_json(SimpleCNN(num_classes=3)) == before
    assert from_json(before) == SimpleCNN(num_classes=3)


@pytest.mark.parametrize("name", sorted(EARLIER))
def test_earlier_names_are_read(name):
    record = {"class": name}
    assert upgraded(record)["class"] == EARLIER[name]
    assert EARLIER[name] in public_dataclasses()


def test_every_module_of_earlier_names_leads_to_a_public_package():
    for module, package in config_json._EARLIER_PREFIXES.items():
        assert package in PACKAGES
        assert module.startswith(f"{package}.")


def test_every_earlier_name_of_a_field_leads_to_a_field():
    for (name, earlier), field in config_json._EARLIER_FIELDS.items():
        fields = {found.name for found in dataclasses.fields(public_dataclasses()[name])}
        assert field in fields
        assert earlier not in fields


def test_a_renamed_class_and_field_are_read(monkeypatch):
    monkeypatch.setitem(config_json._EARLIER_CLASSES, "flaxdl.data.Pictures", "flaxdl.data.Images")
    monkeypatch.setitem(config_json._EARLIER_FIELDS, ("flaxdl.data.Images", "turning"), "rotation")
    for stored in ("flaxdl.data.Pictures", "flaxdl.data.images.Pictures"):
        record = {"class": stored, "turning": 5.0}
        assert from_json(upgraded(record)) == Images(rotation=5.0)
    assert from_json(upgraded({"class": "flaxdl.data.Images", "rotation": 4.0})).rotation == 4.0


def test_spike_recovery_is_read_under_its_earlier_names():
    recovery = training.SpikeRecovery(factor=4.0)
    config = flaxdl.Config(model=SimpleCNN(), data=Arrays("data.npz"), spike_recovery=recovery)
    for name in ("flaxdl.training.Rewind", "flaxdl.training.rewind.Rewind"):
        record = json.loads(json.dumps(to_json(config)))
        record["rewind"] = record.pop("spike_recovery") | {"class": name}
        assert from_json(upgraded(record)) == config


def test_a_renamed_field_of_a_nested_value_is_read(monkeypatch):
    monkeypatch.setitem(config_json._EARLIER_FIELDS, ("flaxdl.data.Text", "longest"), "max_length")
    config = flaxdl.Config(model=SimpleCNN(), data=TextTable("a.csv"), transform=Text(max_length=9))
    record = json.loads(json.dumps(to_json(config)))
    record["transform"]["longest"] = record["transform"].pop("max_length")
    assert from_json(upgraded(record)) == config


@pytest.mark.parametrize(
    "name", ["flaxdl.models.resnet.BasicBlock", "flaxdl.models.bert.BertLayer", "Mine"]
)
def test_parts_that_are_not_public_keep_their_name_and_need_the_config_file(name):
    record = upgraded({"class": name})
    assert record == {"class": name}
    with pytest.raises(flaxdl.UserError, match=f"'{name}', which is not a public class of flaxdl"):
        from_json(record)


def test_a_part_that_is_not_public_is_the_same_as_in_the_config_file():
    record = to_json(BertLayer(dropout=0.5))
    assert record["class"] == "flaxdl.models.bert.BertLayer"
    assert upgraded(record, BertLayer()) == record


@pytest.mark.parametrize("name", [[], {}, None, 3])
def test_a_class_whose_name_is_no_text_is_named(name):
    with pytest.raises(flaxdl.UserError, match="not a public class of flaxdl"):
        from_json(upgraded({"class": name}))


@pytest.mark.parametrize(
    ("cls", "field", "neutral", "other"),
    [
        (layers.BatchNorm, "per_device", False, True),
        (layers.MultiHeadAttention, "dropout", 0.0, 0.1),
    ],
)
def test_a_removed_field_is_read_if_it_changed_nothing(cls, field, neutral, other):
    record = {"class": f"flaxdl.layers.{cls.__name__}"}
    record |= {"num_heads": 2} if cls is layers.MultiHeadAttention else {}
    for name in {f.name for f in dataclasses.fields(cls)} - {"parent", "name", "num_heads"}:
        record |= {name: 8} if name == "features" else {}
    assert from_json(upgraded(record | {field: neutral})) == from_json(upgraded(record))
    with pytest.raises(flaxdl.UserError, match=f"'{field}', which {cls.__name__} does not have"):
        from_json(upgraded(record | {field: other}))


def test_a_class_of_the_program_is_one_of_its_config_file(tmp_path, monkeypatch):
    (tmp_path / "own_program.py").write_text(
        "import json\n"
        "from dataclasses import dataclass\n"
        "from flaxdl import Config\n"
        "from flaxdl.data import Arrays\n"
        "from flaxdl.models import SimpleCNN\n"
        "from flaxdl.runs.config_json import to_json\n"
        "@dataclass(frozen=True)\n"
        "class Own(Arrays):\n"
        "    pass\n"
        "config = Config(model=SimpleCNN(), data=Own('x.npz'))\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps(to_json(config)))\n"
    )
    done = subprocess.run(
        [sys.executable, "own_program.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    record = json.loads(done.stdout)
    assert record["data"]["class"] == "own_program.Own"
    config = flaxdl.load_config(tmp_path / "own_program.py")
    assert upgraded(record, config) == to_json(config)
    record["data"]["class"] = "__main__.Own"  # as earlier versions stored it
    assert upgraded(record, config) == to_json(config)


def test_arrays_keep_their_path():
    record = to_json(Arrays("data.npz"))
    assert record["class"] == "flaxdl.data.Arrays"
    assert from_json(record) == Arrays("data.npz")
