"""Every config in configs/: it says what it does, fits its data, trains two steps, is evaluated.

Data that need a download are replaced by the random examples of `tfds.testing.mock_data`, and all
data cut down to a few examples. The models are the configs' own, at full size; ImageNet's images
are small.
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

import flaxdl
from flaxdl.config import from_json, load_config, to_json
from flaxdl.data import Source, Splits, Tfds
from flaxdl.data.dataset import Subset
from flaxdl.tokens import check_tokens
from flaxdl.training.sharding import make_mesh

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
EMBEDDED = ("digits", "languages")  # TFDS datasets that need no download

every_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


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


@every_config
def test_trains_two_steps_and_is_evaluated(path, tmp_path, monkeypatch, data_dir):
    config = load_config(path)
    data, transform, needs_download = config.data, config.transform, False
    if isinstance(data, Tfds):
        data = dataclasses.replace(data, data_dir=data_dir)
        needs_download = data.name not in EMBEDDED
        if data.name == "imagenet2012":
            transform = dataclasses.replace(transform, size=64, shorter_side=72)
    small = dataclasses.replace(
        config, data=Few(data, train=4), transform=transform, batch_size=2, epochs=1, log_every=1
    )
    # Eight copies of VGG-16 would not fit; several devices and checkpoints have their own tests.
    monkeypatch.setattr("flaxdl.run.make_mesh", lambda: make_mesh(jax.devices()[:1]))
    monkeypatch.setattr("flaxdl.training.checkpoints.Checkpoints.save", lambda self, state: None)
    with mocked(monkeypatch, data_dir) if needs_download else contextlib.nullcontext():
        metrics = flaxdl.train(small, tmp_path).metrics
    assert (metrics["step"], metrics["split"]) == (2, "test")
    assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize("name", ["languages_textrnn", "docs_transformer_lm", "dates_seq2seq"])
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
    assert command == f"python train.py --config configs/{path.name}"
    assert len(text.splitlines()) <= 45


@every_config
def test_survives_json(path):
    config = load_config(path)
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
