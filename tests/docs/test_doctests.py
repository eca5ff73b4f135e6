"""The examples in docstrings run.

They may use `flaxdl`, `jax`, `jnp`, `np` and `partial`. The names `config`, `variables` and
`images` stand for those of the reader.
"""

import doctest
import importlib
import pkgutil
import re
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import soundfile
from PIL import Image

import flaxdl
from flaxdl import Config
from flaxdl.data import Arrays
from flaxdl.models import ResNet18, SimpleCNN
from flaxdl.training import Classification

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF


def examples():
    """Yields the docstrings with examples, of all modules."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for found in pkgutil.walk_packages(flaxdl.__path__, "flaxdl."):
        if found.name != "flaxdl.__main__":
            for test in finder.find(importlib.import_module(found.name), found.name, globs={}):
                if test.examples:
                    yield pytest.param(test, id=test.name.removeprefix("flaxdl."))


EXAMPLES = list(examples())


class Checker(doctest.OutputChecker):
    """Lets a statement print, such as the progress of a run, where the example shows nothing."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def config():
    inputs = np.random.default_rng(0).standard_normal((80, 8, 8, 3), np.float32)
    return Config(
        model=SimpleCNN(num_classes=4),
        data=Arrays.from_memory(train_inputs=inputs, train_label=np.arange(80) % 4),
        task=Classification(),
        batch_size=8,
        epochs=1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the images and weights that examples read."""
    folder = tmp_path_factory.mktemp("doctests")
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(20):
            Image.new("RGB", (8, 8), (12 * number, 0, 0)).save(
                folder / "pets" / name / f"{number}.png"
            )
    for name in ("owl", "wren"):
        (folder / "birds" / name).mkdir(parents=True)
        for number in range(20):
            soundfile.write(folder / "birds" / name / f"{number}.wav", np.zeros(9, np.int16), 8000)
    example = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(ResNet18().init, jax.random.key(0), example)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    flaxdl.export_weights(zeros, folder / "resnet18.safetensors")
    return folder


@pytest.fixture(scope="module")
def runs(folder, config):
    """Two finished runs in that folder."""
    flaxdl.train(config, folder / "runs" / "digits_cnn")
    shutil.copytree(folder / "runs" / "digits_cnn", folder / "runs" / "mine")


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example, folder, config, monkeypatch, request):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("flaxdl.pretrained.download", lambda *_: folder / "resnet18.safetensors")
    if '"runs/' in example.docstring:
        request.getfixturevalue("runs")
    names = {"flaxdl": flaxdl, "jax": jax, "jnp": jnp, "np": np, "optax": optax, "partial": partial}
    example.globs = names | {
        "config": config,
        "images": jnp.zeros((2, 8, 8, 3)),
        "variables": {"params": {"fc": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}},
    }
    printed = []
    doctest.DocTestRunner(Checker(), optionflags=OPTIONS).run(example, out=printed.append)
    assert not printed, "".join(printed)


def test_the_example_of_the_first_page_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("flaxdl.pretrained.download", lambda *_: folder / "resnet18.safetensors")
    page = (Path(__file__).parents[2] / "docs" / "index.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (8, 1000)


def test_the_main_names_have_examples():
    names = {param.id.rpartition(".")[2] for param in EXAMPLES}
    assert names >= {
        *("Config", "train", "restore", "load_pretrained", "load_weights", "state_dict"),
        *("export_weights", "ResNet18", "LSTM", "AdamW", "Cosine", "reference", "ImageFolder"),
        *("from_memory", "generate"),
    }
