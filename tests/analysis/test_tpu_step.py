"""Steps compiled for a TPU that is not there: what fits, by extrapolation and by the compiler."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import pytest

from flaxdl.analysis.compiled_step import Cost
from flaxdl.analysis.memory import Memory
from flaxdl.analysis.tpu_step import (
    TPUCompiler,
    TPUStep,
    exceeded_memory,
    extrapolate,
    other_batch_size,
)
from flaxdl.analysis.tpu_tables import batch_table, largest_batch_text

GIB = 2**30


@pytest.mark.parametrize(
    ("points", "unit", "most", "expected"),
    [
        (((10, 200), (20, 300)), 1, 999, 90),  # 100 + 10 n <= 1000
        (((20, 300), (10, 200)), 1, 999, 90),
        (((10, 205), (20, 305)), 1, 999, 89),
        (((10, 200), (20, 300)), 16, 999, 80),
        (((10, 200), (20, 300)), 1, 50, 50),
        (((8, 1980), (16, 3960)), 1, 999, 4),  # neither fits
        (((8, 9000), (16, 9100)), 8, 999, 0),  # the state alone does not
        (((8, 500), (16, 500)), 1, 999, 999),
        (((8, 500), (16, 400)), 1, 999, 999),
    ],
)
def test_memory_is_extrapolated_linearly(points, unit, most, expected):
    assert extrapolate(*points, limit=1000, unit=unit, most=most) == expected


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (17.00G) exceeds available HBM (15.75G).",
            17 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 1.50T of 31.25G hbm. Exceeded hbm capacity by 1.47T.",
            1536 * GIB,
            31.25 * GIB,
        ),
    ],
)
def test_the_compiler_says_how_much_memory_it_needs(message, needed, limit):
    assert exceeded_memory(jax.errors.JaxRuntimeError(message)) == (needed, limit)


def test_other_errors_of_the_compiler_are_raised():
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem")
    with pytest.raises(jax.errors.JaxRuntimeError, match="space vmem"):
        exceeded_memory(error)


@dataclass(frozen=True)
class Linear(TPUCompiler):
    """A compiler for which memory is a linear function of the batch size."""

    setup: None = None  # type: ignore[assignment]
    state: int = 100
    each: int = 10
    limit: int = 1000
    unit: int = 1
    largest: int = 10**6
    hidden: int = 0  # needed by batches above 50 only
    compiled: list = field(default_factory=list)

    def compile(self, batch_size):
        self.compiled.append(batch_size)
        needed = self.state + self.each * batch_size + self.hidden * (batch_size > 50)
        names = ("parameters", "optimizer", "average", "other_state", "batch", "padding")
        fits = needed <= self.limit
        return TPUStep(
            batch_size=batch_size,
            memory=Memory(
                **dict.fromkeys(names, 0),
                temporary=needed,
                output=0,
                generated_code=0,
                available=self.limit,
            ),
            needed=needed,
            cost=Cost(flops=1, bytes_accessed=1, collectives={}) if fits else None,
            message="" if fits else "too large",
            seconds=1.0,
        )

    def search(self, batch_size):
        found = self.find_largest_batch(self.compile(batch_size))
        return found, largest_batch_text(self, found)


def test_two_sizes_are_extrapolated_and_a_third_checks_them():
    compiler = Linear()
    found, text = compiler.search(10)
    assert found.batch_size == 90
    assert compiler.compiled == [10, 25, 90]  # 25: half of the memory if all of it were per example
    assert text == (
        "largest batch size: about 90, by linear extrapolation; compiled with it, the step fits"
    )
    assert [list(column.cells) for column in batch_table(found).columns][1:3] == [
        ["0.0"] * 3,
        ["yes"] * 3,
    ]


def test_a_wrong_extrapolation_is_reported():
    found, text = Linear(hidden=5).search(10)
    assert found.batch_size == 90
    assert "about 90" in text
    assert text.endswith("but compiled with it, the step does not fit: too large")


def test_smaller_sizes_are_tried_if_the_first_does_not_fit():
    compiler = Linear(each=30, unit=4)
    found, text = compiler.search(64)  # 2020 of 1000
    assert compiler.compiled == [64, 12, 4, 28]
    assert found.batch_size == 28  # 30.0 in multiples of 4
    assert text.endswith("the step fits")
    compiler = Linear(state=2000, unit=4)
    assert compiler.search(64)[1] == "no batch size fits"
    assert compiler.compiled == [64, 12, 4]


def test_no_batch_is_larger_than_the_training_data():
    compiler = Linear(each=1, largest=150)
    found, text = compiler.search(10)
    assert compiler.compiled == [10, 45, 150]
    assert found.batch_size == 150
    assert text == (
        "largest batch size: 150 or more, which is all training examples; compiled with it, the "
        "step fits"
    )
    compiler = Linear(state=0, each=1, largest=150)
    assert compiler.search(10)[0].batch_size == 150
    assert compiler.compiled == [10, 150]  # which fits, so that nothing is left to extrapolate


def test_where_twice_the_size_would_not_fit_half_is_compiled():
    step = Linear(state=0).compile(60)
    assert other_batch_size(step, unit=1, most=999, limit=1000) == 30
    assert other_batch_size(step, unit=25, most=999, limit=1000) == 25
    assert other_batch_size(step, unit=60, most=999, limit=1000) is None


CONFIG = """
import numpy as np
from flaxdl import Config
from flaxdl.data import Arrays
from flaxdl.training import SGD
from small_network import Linears

x = np.zeros((4096, 16), np.float32)
config = Config(
    model=Linears(num_classes=4, width=WIDTH),
    data=Arrays.from_memory(train_inputs=x, train_label=np.arange(4096) % 4),
    optimizer=SGD(learning_rate=0.1, momentum=None),
    batch_size=64,
)
"""
NETWORK = """
import flax.linen as nn
from flaxdl.layers import Linear

class Linears(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x, train=False):
        return Linear(self.num_classes, name="fc")(nn.relu(Linear(self.width, name="hidden")(x)))
"""


def inspect(folder, width, topology):
    (folder / "small_network.py").write_text(NETWORK)
    (folder / "network.py").write_text(CONFIG.replace("WIDTH", str(width)))
    return subprocess.run(
        [sys.executable, "-m", "flaxdl", "inspect", "--config", "network.py", "--memory",
         "--topology", topology],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip


def test_a_step_is_compiled_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")
    done = inspect(tmp_path, 64, "v5e:1x1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 x TPU v5 lite (v5e:1x1), batch size 64, jax ")
    assert "of 16,128.0" in done.stdout  # 15.75 GiB
    assert "largest batch size: 3,686 or more" in done.stdout  # of 4,096, a tenth validates
    cells = [line.split() for line in done.stdout.splitlines()]
    assert ["collectives", "none"] in cells


def test_a_step_that_does_not_fit_is_refused_with_the_compilers_figures(tmp_path):
    pytest.importorskip("libtpu")
    done = inspect(tmp_path, 2**30, "v5e:1x1")  # 64 GiB of weights for 16 inputs
    assert done.returncode == 2, done.stdout
    assert "does not fit on a device of TPU v5 lite with batch size 64" in done.stderr
    assert "exceeds available HBM (15.75G)" in done.stderr
    assert "no batch size fits" in done.stderr
