"""docs/models.md: its figures are those of the code and of the recorded measurements."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from flaxdl import models

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}
# Model → its rows in the measurements.
ERRORS = {
    **{name: name for name in ("SimpleCNN", "SimpleRNN", "TextRNN")},
    **{name: name.lower() for name in ROWS if name.startswith(("AlexNet", "VGG", "ResNet"))},
    "TransformerClassifier": "transformer_encoder_layer",
    "TransformerLM": "transformer_encoder_layer",
    "Seq2SeqTransformer": "transformer_decoder_layer",
    "Bert": "bert",
}
SPEEDS = {
    "SimpleCNN": ("simple_cnn_32", "simple_cnn_8"),
    "LeNet5": ("lenet",),
    "AlexNet": ("alexnet",),
    "VGG11": ("vgg11",),
    "ResNet18": ("resnet18",),
    "ResNet50": ("resnet50",),
    "SimpleRNN": ("rnn", "lstm", "gru"),
    "TextRNN": ("text_rnn",),
    "TransformerClassifier": ("encoder",),
    "BertForSequenceClassification": ("bert_base",),
}


def test_every_model_has_a_row():
    bases = {"VGG", "ResNet"}
    classes = {name for name in models.__all__ if isinstance(getattr(models, name), type)}
    assert set(ROWS) == classes - bases


@pytest.mark.parametrize("name", [name for name, cells in ROWS.items() if cells[1] != "any"])
def test_parameters(name):
    model_class = getattr(models, name)
    if name.startswith("Bert"):
        inputs = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        has_head = name == "BertForSequenceClassification"
        model = model_class(num_classes=2) if has_head else model_class()
    else:
        shape = (1, 32, 32, 1) if name == "LeNet5" else (1, 224, 224, 3)
        inputs, model = jax.ShapeDtypeStruct(shape, jnp.float32), model_class()
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert ROWS[name][1] == f"{sum(x.size for x in jax.tree.leaves(variables['params'])):,}"


def test_errors_are_those_that_were_measured():
    measured = json.loads((RESULTS / "parity.json").read_text())["errors"]
    for name, cells in ROWS.items():
        error = cells[2].partition(" ")[0]
        if name in ERRORS:
            assert float(error) == float(f"{1e7 * measured[ERRORS[name]]:.2g}"), name
        else:
            assert error == "–"


def test_speeds_are_those_that_were_measured():
    recorded = json.loads((RESULTS / "speed_amd.json").read_text())
    assert recorded["machine"] == {"processor": "AMD EPYC", "cores": 2}
    for name, cells in ROWS.items():
        ratios = [
            f"{recorded['rows'][row]['train']['eager']['ratio']:.2f}"
            for row in SPEEDS.get(name, ())
        ]
        assert cells[3] == (", ".join(ratios) or "–"), name


def test_configs_and_files_exist():
    for name, cells in ROWS.items():
        for config in re.findall(r"`(\w+)`", cells[4]):
            assert re.search(rf"\b{name}\(", (ROOT / "configs" / f"{config}.py").read_text()), (
                config
            )
        path = re.search(r"\]\(\.\./(flaxdl/models/\w+\.py)\)", cells[5])
        assert path is not None
        assert f"class {name}(" in (ROOT / path[1]).read_text()
