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
    arguments = ["--rows", "simple_cnn_8", "--contenders", "eager", "--rounds", "2"]
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "speed.py", *arguments,
         "--seconds", "0.02", "--out", tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        check=True,
        timeout=300,
    )  # fmt: skip
    row = json.loads((tmp_path / "speed_cpu.json").read_text())["rows"]["simple_cnn_8"]
    for side in ("ours", "pytorch"):
        assert max(row["parity"][side].values()) < 1e-5
    assert set(row["versions"]) == {"jax", "jaxlib", "flax", "torch"}
    for mode in ("train", "infer"):
        least, most = row[mode]["eager"]["ratios"]
        assert 0 < least <= row[mode]["eager"]["ratio"] <= most
        assert row[mode]["ours"]["ms"] > 0
    table = (tmp_path / "speed_cpu.md").read_text()
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
