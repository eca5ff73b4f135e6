"""What the README says of the tree: links, the map, the tables."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from flaxdl import models
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
    rows = README.partition("## Map")[2].partition("\n\n[")[0]
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
    for config in set(re.findall(r"configs/(\w+)\.py", README)) - {"NAME"}:
        assert (ROOT / "configs" / f"{config}.py").exists(), config
    for script in re.findall(r"benchmarks/(\w+\.py)", README):
        assert (ROOT / "benchmarks" / script).exists(), script


@pytest.mark.parametrize("name", ["SimpleCNN", "LeNet5", "AlexNet", "VGG16", "ResNet50"])
def test_parameters_are_counted(name):
    written = re.search(rf"^\| `{name}` \| ([\d,]+) \|", README, re.MULTILINE)
    assert written is not None
    channels, side = (1, 32) if name == "LeNet5" else (3, 224)
    shape = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    variables = jax.eval_shape(getattr(models, name)().init, jax.random.key(0), shape)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert written[1] == f"{count:,}"


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for block in blocks:
        names: dict = {}
        if "load_pretrained" not in block:  # which downloads; `load_weights` has tests of its own
            exec(block.replace("epochs=20", "epochs=2").replace("warmup_steps=4", ""), names)
        if "result" in names:
            assert names["logits"].shape == (8, 5)
    assert len(blocks) == 3


def test_errors_are_those_that_were_measured():
    errors = json.loads((ROOT / "benchmarks" / "results" / "parity.json").read_text())["errors"]
    for name in ("alexnet", "resnet50", "SimpleCNN"):
        row = re.search(rf"^\| `{name}` \|[^|]+\| ([^|]+) \|", README, re.MULTILINE | re.IGNORECASE)
        assert row is not None
        assert float(row[1]) == pytest.approx(errors[name], rel=0.06)  # two digits
