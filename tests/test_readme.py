"""README: its links, commands, code and table of models; CONTRIBUTING.md: its list of packages."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from flaxdl import load_weights, models, state_dict
from flaxdl.cli import COMMANDS

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    for link in links:
        if not link.startswith("https://"):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_map_names_everything_there_is():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    rows = contributing.partition("## Package structure")[2].partition("Imports go one way")[0]
    in_package = set()
    for row in rows.splitlines():
        places, described = (re.findall(r"`([\w/]+(?:\.py|/))`", cell) for cell in cells(row))
        in_package |= {name.removeprefix("flaxdl/").rstrip("/") for name in places}
        for name in places:
            assert (ROOT / name).exists() or (ROOT / "flaxdl" / name).exists(), name
        for name in described:
            inside = [ROOT, *(ROOT / place for place in places)]
            assert any((folder / name).exists() for folder in inside), name
    there = {
        path.name for path in (ROOT / "flaxdl").iterdir() if not path.name.startswith(("__", "."))
    }
    assert there - {"py.typed"} <= in_package


def cells(row):
    """The two cells of a row of a table, which are empty where it is none."""
    return [*row.strip("|").split("|"), "", ""][:2]


def test_commands_and_configs_exist():
    assert set(re.findall(r"(?:-m flaxdl|\$ flaxdl|\(flaxdl) (\w+)", README)) <= set(COMMANDS)
    named = re.findall(r"configs/(\w+)\.py|--config (\w+)(?![\w/.])", README)
    for config in {name for pair in named for name in pair} - {"", "NAME"}:
        assert (ROOT / "configs" / f"{config}.py").exists(), config
    for script in re.findall(r"benchmarks/(\w+\.py)", README):
        assert (ROOT / "benchmarks" / script).exists(), script


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_parameters_are_counted():
    rows = re.findall(r"^\| (`.+?) \| ([\d., ]+) \|", README, re.MULTILINE)
    stated = {
        name: float(millions)
        for names, counts in rows
        for name, millions in zip(re.findall(r"`(\w+)`", names), counts.split(", "), strict=True)
    }
    assert len(stated) == 12
    for name, millions in stated.items():
        channels, side = (1, 32) if name == "LeNet5" else (3, 224)
        shape = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
        variables = jax.eval_shape(getattr(models, name)().init, jax.random.key(0), shape)
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert millions == pytest.approx(count / 1e6, abs=0.05 if count > 1e6 else 0.03), name


def test_its_python_runs(tmp_path, monkeypatch):
    """Nothing is downloaded: the weights of a ResNet-50 are random."""
    model = models.ResNet50()
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.01, x.dtype), shapes)
    monkeypatch.setattr("flaxdl.load_pretrained", lambda name: (model, variables))
    monkeypatch.chdir(tmp_path)
    torch_style = {k: v for k, v in state_dict(variables).items() if not k.startswith("fc.")}
    safetensors.numpy.save_file(torch_style, "body.safetensors")
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(block.replace("resnet50.pth", "body.safetensors"), names)
    assert len(blocks) == 3
    assert names["logits"].shape == (1, 1000)
    exported = load_weights(variables, "resnet50.safetensors")
    jax.tree.map(np.testing.assert_array_equal, exported, names["variables"])
    assert names["tensors"]["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)
