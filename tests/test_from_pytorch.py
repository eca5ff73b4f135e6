"""Every block of docs/from_pytorch.md is run, in order: ours, PyTorch's, and where they agree."""

import re
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxdl.models import ResNet18
from flaxdl.weights import export_weights
from flaxdl.weights.hub import published

PAGE = Path(__file__).parent.parent / "docs" / "from_pytorch.md"
BLOCK = re.compile(r"^([^\n`]*):\n\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

OURS = ("flaxdl", "flaxdl, with a download")
ALL = ("PyTorch", "Both", *OURS)


def blocks(*titles):
    """The code under these titles, each behind so many empty lines that errors name its place."""
    text = PAGE.read_text()
    for found in BLOCK.finditer(text):
        if found[1] in titles:
            yield (
                found[1],
                compile("\n" * text[: found.start(2)].count("\n") + found[2], PAGE, "exec"),
            )


@pytest.fixture
def resnet18(tmp_path, monkeypatch):
    """Makes random weights the published ones, so that nothing is downloaded."""
    model = ResNet18()
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), shapes)
    monkeypatch.setattr("flaxdl.pretrained.download", lambda *_: tmp_path / "resnet18.safetensors")
    export_weights(variables, tmp_path / "resnet18.safetensors")


def test_no_block_has_a_title_that_nothing_runs():
    titles = {found[1] for found in BLOCK.finditer(PAGE.read_text())}
    assert titles == set(ALL)
    assert PAGE.read_text().count("```python") == len(list(blocks(*ALL)))


def test_every_block_runs_and_both_agree(tmp_path, monkeypatch, resnet18):
    monkeypatch.chdir(tmp_path)
    titles = OURS if find_spec("torch") is None else ALL
    names = {"PyTorch": {}, "flaxdl": {}, "flaxdl, with a download": {}}
    for title, code in blocks(*titles):
        if title == "Both":
            exec(code, names["PyTorch"] | names["flaxdl"])
        else:
            exec(code, names[title])
    ours = names["flaxdl"]
    assert ours["logits"].shape == (8, 10)
    assert 0 <= ours["accuracy"] <= 1
    assert ours["test_logits"].shape == (8, 4)
    assert 0 <= ours["striped_accuracy"] <= 1
    assert np.isfinite(ours["absolute_error"])
    assert int(ours["state"].step) == 2
    assert published(ours["photographs"].init.weights).name == "resnet50"
    jax.tree.map(np.testing.assert_array_equal, ours["again"], ours["variables"])
    published_variables = names["flaxdl, with a download"]["resnet_variables"]
    assert published_variables["params"]["fc"]["bias"].shape == (1000,)
