"""Regression from tables of images and texts: prediction, report, figures, and exports."""

import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.every_model import CLASSES, inputs_of, small
from helpers.small_runs import train
from PIL import Image

import flaxdl
from flaxdl import Config, Init
from flaxdl.cli import main
from flaxdl.data import Images, ImageTable, Text, TextTable
from flaxdl.models import BertForSequenceClassification, SimpleCNN
from flaxdl.pretrained import load_pretrained
from flaxdl.runs import initial_weights
from flaxdl.runs.initial_weights import described_initial_state, initial_state
from flaxdl.runs.last_layer import last_layer
from flaxdl.runs.setup import set_up
from flaxdl.training import AdamW, Regression, Selection, Steps

WORDS = ("plain", "old", "small", "warm", "quiet", "bright")
BERT = BertForSequenceClassification(
    num_classes=None,
    vocab_size=None,
    hidden_size=8,
    num_heads=2,
    num_layers=1,
    feed_forward_size=12,
    max_length=12,
    dropout=0.0,
    padding_index=0,
)


def write_images(folder, count=60):
    """Images with a brightness in lux and a size; every fifth has no size."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    rows = ["path,split,lux,size"]
    for number in range(count):
        lux = rng.uniform(0, 1)
        pixels = np.clip(rng.normal(60 + 130 * lux, 20, (9, 9, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
        split = ("train", "train", "val", "test")[number % 4]
        size = "" if number % 5 == 0 else f"{7 - 3 * lux:.3f}"
        rows.append(f"photos/{number}.png,{split},{20_000 + 5000 * lux:.1f},{size}")
    (folder / "photos.csv").write_text("\n".join([*rows, ""]))


def write_texts(path, count=200):
    """Descriptions of flats whose price is the number of words, with some noise."""
    rng = np.random.default_rng(0)
    rows = ["text,price"]
    for _ in range(count):
        words = rng.choice(WORDS, rng.integers(1, 11))
        rows.append(f"{' '.join(words)},{1e6 + 100 * len(words) + rng.normal(0, 5):.2f}")
    path.write_text("\n".join([*rows, ""]))


def image_config(folder, **changes):
    settings = {
        "model": SimpleCNN(num_classes=None, dropout=0.0),
        "data": ImageTable(str(folder / "photos.csv"), targets=("lux", "size"), split="split"),
        "transform": Images(mean=(0.5,), std=(0.25,), size=8),
        "task": Regression(point_loss="huber"),
        "optimizer": AdamW(learning_rate=2e-3),
        "batch_size": 10,
        "epochs": 5,
        "evaluate_every": 1,
        "selection": Selection(metric="mae/lux"),
    }
    return Config(**(settings | changes))


def text_config(path, **changes):
    settings = {
        "model": BERT,
        "data": TextTable(str(path), targets=("price",)),
        "transform": Text("words", max_length=12),
        "task": Regression(),
        "optimizer": AdamW(learning_rate=1e-2),
        "batch_size": 16,
        "epochs": 12,
        "evaluate_every": 6,
        "selection": Selection(metric="rmse"),
    }
    return Config(**(settings | changes))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder, flaxdl.train(image_config(folder), folder / "run")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder / "flats.csv")
    return folder, flaxdl.train(text_config(folder / "flats.csv"), folder / "run")


def values_of(found):
    return np.array([list(one.values.values()) for one in found])


def test_images_from_table_to_prediction(images, capsys):
    folder, result = images
    assert result.metrics["r2/lux"] > 0.5
    assert result.metrics["r2/size"] > 0.3
    names = [str(folder / "photos" / f"{number}.png") for number in (3, 7)]
    found = flaxdl.predict(folder / "run", names)
    assert np.all(np.abs(values_of(found)[:, 0] - 22_500) < 4000)
    assert main(["predict", "--workdir", str(folder / "run"), str(folder / "photos")]) == 0
    out = capsys.readouterr().out
    assert out.count(".png") == 60
    assert re.search(r"3.png +│ 2\d,\d{3} │", out)  # as in the report, not 2.1234e+04


def test_texts_from_table_to_prediction(texts):
    folder, result = texts
    assert result.metrics["r2"] > 0.5
    assert "r2/price" not in result.metrics
    short, long = values_of(
        flaxdl.predict(folder / "run", ["old", " ".join([*WORDS, "old", "old"])])
    )
    assert 1e6 < short < long < 1_001_200


def test_the_report_of_images(images):
    folder, _ = images
    html = (folder / "run" / "report.html").read_text()
    assert "15 examples of the test split" in html
    for name in ("lux", "size"):
        assert html.count(f'aria-label="Predicted over true {name}: 1') == 1
        assert html.count(f'aria-label="Errors of {name}: median') == 1
    assert "<dt>test MAE of lux</dt>" in html  # the metric of selection
    assert "test R2 of lux" not in html
    assert "Confusion" not in html
    assert html.count('<img class="zoom"') == 12
    assert html.count("photos/") == 12
    with np.load(folder / "run" / "predictions.npz") as stored:
        label, estimate, shown = (stored[name] for name in ("label", "estimate", "shown"))
    task = flaxdl.restore(folder / "run").config.task
    errors = np.nanmax(np.abs(label - estimate) / task.std, axis=1)
    np.testing.assert_array_equal(shown, np.argsort(-errors)[:12])
    assert main(["report", "--workdir", str(folder / "run")]) == 0
    again = (folder / "run" / "report.html").read_text()
    assert again.count('<img class="zoom"') == 12


def test_the_report_of_texts(texts):
    folder, result = texts
    html = (folder / "run" / "report.html").read_text()
    row = re.search(r'<th scope="row">price</th>(.*?)</tr>', html)[1]
    figures = re.findall(r">([^<]+)</td>", row)
    assert float(figures[1]) == pytest.approx(result.metrics["mae"], rel=1e-3)
    assert float(figures[3]) == pytest.approx(result.metrics["r2"], rel=1e-3)
    section = html.partition("Largest errors")[2]
    assert any(f"{word} " in section for word in WORDS)


def test_figures_explain_a_target(images, texts, capsys):
    folder, _ = images
    line = [
        "visualize",
        "--workdir",
        str(folder / "run"),
        str(folder / "photos" / "3.png"),
        "--what",
    ]
    assert main([*line, "saliency"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "--what saliency explains one target; choose one of lux, size with --class" in message
    assert main([*line, "grad-cam", "--class", "luxx"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "there is no target 'luxx'; targets are lux, size; did you mean 'lux'?" in message
    figure = flaxdl.visualize(folder / "run", line[3], "grad-cam", class_name="lux")
    assert re.match(
        r"Grad-CAM for target “lux”, predicted lux 2\.\d+e\+04, size ", figure.get_suptitle()
    )
    figure = flaxdl.visualize(texts[0] / "run", "old warm", "saliency")
    assert figure.get_suptitle().startswith("Saliency, predicted price 1")


torch = pytest.importorskip("torch")


class Twin(torch.nn.Module):
    """SimpleCNN in PyTorch."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)),
        )
        self.classifier = nn.Sequential(
            *(nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 2))
        )

    def forward(self, images):
        return self.classifier(self.features(images))


def test_pytorch_computes_own_units_with_exported_weights(images, tmp_path):
    folder, result = images
    flaxdl.export(folder / "run", tmp_path / "model.safetensors")
    from safetensors.torch import load_file

    twin = Twin().eval()
    twin.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    names = [str(folder / "photos" / f"{number}.png") for number in range(4)]
    batch = result.run.transform.read(names, {"inputs": (8, 8, 3)})
    inputs = np.asarray(result.run.transform.normalize(batch["inputs"]))
    with torch.no_grad():
        theirs = twin(torch.tensor(inputs.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(theirs, values_of(flaxdl.predict(folder / "run", names)), rtol=1e-5)


def test_a_program_computes_own_units(images, tmp_path):
    folder, result = images
    flaxdl.export(folder / "run", tmp_path / "model.stablehlo")
    program = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes()))
    names = [str(folder / "photos" / f"{number}.png") for number in range(3)]
    batch = result.run.transform.read(names, {"inputs": (8, 8, 3)})
    expected = values_of(flaxdl.predict(folder / "run", names))
    np.testing.assert_allclose(program.call(batch), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_transformers_computes_own_units_with_an_exported_folder(texts, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, result = texts
    flaxdl.export(folder / "run", tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert config["id2label"] == {"0": "price"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "bert")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "bert"
    ).eval()
    assert model.config.num_labels == 1
    items = ["warm old", "small", "quiet bright plain warm"]
    encoded = tokenizer(items, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**encoded)
        standardized = model(**encoded, labels=theirs.logits[:, 0] + 2.0)  # its MSE loss
    expected = values_of(flaxdl.predict(folder / "run", items))
    np.testing.assert_allclose(theirs.logits, expected, rtol=1e-5)
    assert standardized.loss.item() == pytest.approx(4, rel=1e-2)

    # The folder is a model of ours again, whose outputs are in own units.
    ours, variables = load_pretrained(str(tmp_path / "bert"))
    batch = result.run.transform.read(items, {"inputs": (12,)})
    outputs = ours.apply(variables, batch["inputs"], lengths=batch["lengths"])
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    # Fine-tuning with an identity in place of statistics begins with the same predictions.
    own = text_config(
        folder / "flats.csv",
        task=Regression(mean=(0.0,), std=(1.0,)),
        init=Init(weights=str(tmp_path / "bert")),
    )
    state = initial_state(set_up(own))
    found = result.model.apply({"params": state.params}, batch["inputs"], lengths=batch["lengths"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("problem_type", ["regression", None])
def test_a_published_regression_head_is_loaded(problem_type, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=20, intermediate_size=12, num_labels=1, problem_type=problem_type, **sizes
    )
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    model, variables = load_pretrained(str(tmp_path))
    assert model.num_classes == 1
    tokens = np.arange(12).reshape(2, 6)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(model.apply(variables, tokens), expected, atol=1e-5)


def test_weights_of_a_run_keep_their_predictions_in_a_run_with_other_statistics(images, tmp_path):
    folder, result = images
    write_images(tmp_path, count=40)
    config = image_config(tmp_path, init=Init(weights=str(folder / "run")))
    setup = set_up(config)
    assert setup.config.task.mean != result.run.config.task.mean
    state, text = described_initial_state(setup)
    assert text.endswith(
        "; outputs converted to the mean and standard deviation of this training split"
    )
    batch = result.run.transform.read([str(folder / "photos" / "1.png")], {"inputs": (8, 8, 3)})
    found = setup.config.task.in_own_units(jax.jit(setup.steps.predict)(state, batch))
    expected = result.run.config.task.in_own_units(
        result.run.steps.predict(result.run.state, batch)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    init = Init(weights=str(folder / "run"), omit=("classifier.4.*",))
    _, text = described_initial_state(set_up(image_config(tmp_path, init=init)))
    assert "converted" not in text


@pytest.mark.parametrize(
    "name", [name for name, model in CLASSES.items() if "num_classes" in model.__dataclass_fields__]
)
def test_every_model_ends_with_a_linear_layer(name):
    model = small(name)
    inputs, keywords = inputs_of(name)
    count = model.num_classes
    label = jax.ShapeDtypeStruct((inputs.shape[0], count), np.float32)
    weight = jax.ShapeDtypeStruct(inputs.shape[:1], np.float32)
    task = Regression(mean=(0.0,) * count, std=(1.0,) * count)
    steps = Steps(model=model, task=task, optimizer=AdamW(), total_steps=1)
    plan = SimpleNamespace(
        config=SimpleNamespace(model=model),
        steps=steps,
        examples={"inputs": inputs, "label": label, "weight": weight, **keywords},
    )
    state = jax.eval_shape(steps.initial_state, plan.examples)
    layer = state.params
    for part in last_layer(plan, state):
        layer = layer[part]
    assert layer["kernel"].shape[1:] == layer["bias"].shape == (count,)


class Scaled(SimpleCNN):
    """A model that changes the outputs of its last layer."""

    def __call__(self, images, train=False):
        return 2 * super().__call__(images, train)


def test_weights_of_other_targets_are_not_converted(images, tmp_path, caplog):
    folder, result = images
    write_images(tmp_path, count=40)
    table = tmp_path / "photos.csv"
    table.write_text(table.read_text().replace("path,split,lux,size", "path,split,lux,mass"))
    config = image_config(
        tmp_path,
        data=ImageTable(str(table), targets=("lux", "mass"), split="split"),
        selection=Selection(metric="rmse"),
        init=Init(weights=str(folder / "run")),
    )
    state, text = described_initial_state(set_up(config))
    head = state.params["classifier.4"]
    trained = result.run.variables["params"]["classifier.4"]
    jax.tree.map(np.testing.assert_array_equal, dict(head), dict(trained))
    assert "converted" not in text
    expected = f"the targets of {folder / 'run'} are lux, size, those of this run lux, mass, so"
    assert sum(expected in record.getMessage() for record in caplog.records) == 1


def test_weights_of_a_model_without_a_linear_last_layer(images, tmp_path, monkeypatch):
    model = Scaled(num_classes=None)
    trained = image_config(images[0], model=model, epochs=1)
    train(trained, tmp_path / "run")
    monkeypatch.setattr(initial_weights, "restore", lambda run: flaxdl.restore(run, trained))
    write_images(tmp_path, count=40)
    init = Init(weights=str(tmp_path / "run"))
    config = image_config(tmp_path, model=model, init=init)
    message = "^init.weights: Scaled must return .*; without conversion, .* task.mean "
    with pytest.raises(flaxdl.UserError, match=message):
        initial_state(set_up(config))
    task = flaxdl.restore(tmp_path / "run", trained).config.task
    same = Regression(point_loss="huber", mean=task.mean, std=task.std)
    _, text = described_initial_state(set_up(dataclasses.replace(config, task=same)))
    assert text == f"weights from {tmp_path / 'run'}, step 3"


def test_a_model_without_a_linear_last_layer_is_refused(images):
    setup = set_up(image_config(images[0], model=Scaled(num_classes=None)))
    with pytest.raises(flaxdl.UserError, match="Scaled must return the outputs of a linear layer"):
        last_layer(setup, setup.shapes())


def test_mixing_is_refused(images, tmp_path):
    config = image_config(images[0], transform=Images(size=8, mixup_alpha=0.2))
    message = "mixup and cutmix need classes, and Regression has numbers.* got mixup_alpha 0.2"
    with pytest.raises(flaxdl.UserError, match=message):
        train(config, tmp_path / "run")
