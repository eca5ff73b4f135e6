"""The comparison of speed runs, and compares networks that compute the same."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_a_row_is_measured_beside_pytorch(tmp_path):
    pytest.importorskip("torch")
    arguments = ["--rows", "simple_cnn_8", "--contenders", "eager", "reference", "--rounds", "2"]
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "speed.py", *arguments,
         "--seconds", "0.02", "--out", tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        check=True,
        timeout=300,
    )  # fmt: skip
    (results,) = tmp_path.glob("speed_*.json")
    row = json.loads(results.read_text())["rows"]["simple_cnn_8"]
    for side in ("ours", "pytorch"):
        assert max(row["parity"][side].values()) < 1e-5
    assert (row["rounds"], row["seconds"]) == (2, 0.02)
    assert set(row["versions"]) == {"jax", "jaxlib", "flax", "torch"}
    for mode in ("train", "infer"):
        for side in ("eager", "reference"):
            least, most = row[mode][side]["ratios"]
            assert 0 < least <= row[mode][side]["ratio"] <= most
        assert row[mode]["ours"]["ms"] > 0
    table = results.with_suffix(".md").read_text()
    assert f"| `simple_cnn_8` | {row['train']['ours']['ms']:.3g} |" in table
    assert "| `bert_base` | not measured |" in table


@pytest.mark.parametrize(
    ("precision", "ours", "theirs", "same"),
    [
        ("float32", 4e-5, 0.0, True),
        ("float32", 6e-5, 1e-6, False),
        ("float32", 0.05, 0.035, True),
        ("float32", 0.25, 0.15, False),
        ("float32", math.nan, 1e-6, False),
        ("float32", 1e-6, math.nan, False),
        ("bfloat16", 0.02, 0.001, True),
        ("bfloat16", 0.04, 0.01, False),
        ("bfloat16", 1.3, 1.4, True),
        ("bfloat16", math.nan, 1.4, False),
        ("bfloat16", 0.01, math.nan, False),
    ],
)
def test_who_computes_the_same(monkeypatch, precision, ours, theirs, same):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert importlib.import_module("speed").is_same(ours, theirs, precision) is same


def test_augmentation_is_measured_beside_pillow(tmp_path):
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "augmentation.py", "--rounds", "1",
         "--seconds", "0.001", "--out", tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=300,
    )  # fmt: skip
    (results,) = tmp_path.glob("augmentation_*.json")
    found = json.loads(results.read_text())
    stored = json.loads((ROOT / "benchmarks" / "results" / "augmentation_amd.json").read_text())
    rows = found["images_per_second_of_a_core"]
    assert rows.keys() == stored["images_per_second_of_a_core"].keys()
    assert all(row["ours"] > 0 and row["pillow"] > 0 for row in rows.values())


def test_the_interval_of_a_median_is_that_of_the_sign_test(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    interval = importlib.import_module("augmented_step").confidence_interval
    # From tables of the sign test: the 6th of 20 values and the 6th from the end contain the median
    # with a probability of 95.9 %, the 1st and the last of 6 with one of 96.9 %.
    assert interval(list(range(20, 0, -1))) == (6, 15)
    assert interval([3, 1, 2, 6, 5, 4]) == (1, 6)
    with pytest.raises(ValueError, match="5 pairs are too few"):
        interval([1.0] * 5)


def test_the_parts_of_a_recipe_are_compared_with_the_variant_before(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    recipe = importlib.import_module("recipe")
    names = list(recipe.variants())
    assert names[0] == "baseline"
    assert names[-1] == recipe.ALONE
    accuracies = {name: 0.5 + 0.01 * number**2 for number, name in enumerate(names[:3])}
    accuracies[recipe.ALONE] = 0.4
    runs = {
        name: {"0": {"accuracy": value}, "1": {"accuracy": value + 0.02}}
        for name, value in accuracies.items()
    }
    lines = recipe.table(runs).splitlines()
    assert lines[2] == "| baseline | 51.0% (50.0% to 52.0%) | +0.0 (+0.0 to +0.0) |"
    assert lines[4].endswith("| 55.0% (54.0% to 56.0%) | +3.0 (+3.0 to +3.0) |")
    assert lines[5].endswith("| 41.0% (40.0% to 42.0%) | -10.0 (-10.0 to -10.0) |")
