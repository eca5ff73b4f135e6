"""Memory that is freed and taken again, without asking the system for it."""

import ctypes
import os
import subprocess
import sys

import pytest

# Page faults of something that is done ten times, behind a few first times.
COUNTED = """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    do()
before = faults()
for _ in range(10):
    do()
print(faults() - before)
"""
BYTES = """
from contextlib import ExitStack
from flaxdl.backend.malloc import keep_freed_memory
stack = ExitStack()
stack.enter_context(keep_freed_memory())
def do():
    bytearray(2 ** 26)
"""
# The first product is 96 MiB, which lie in the memory of the step.
STEP = """
import jax
import jax.numpy as jnp
from contextlib import ExitStack
from flaxdl.backend.malloc import synchronous_dispatch, keep_freed_memory
stack = ExitStack()
stack.enter_context(synchronous_dispatch())
stack.enter_context(keep_freed_memory())
row = jnp.ones((1, 1024))
f = jax.jit(lambda x: ((x.T @ jnp.ones((1, 12 * 2048))) @ jnp.ones((12 * 2048, 1))).sum())
def do():
    f(row).block_until_ready()
"""
# The same with inputs that JAX has to copy, since they do not begin at a cache line.
BATCH = (
    STEP
    + """
import numpy as np
from flaxdl.training.distributed.mesh import make_mesh
from flaxdl.training.distributed.placement import put_batch
mesh = make_mesh(devices=jax.devices()[:1])
whole = np.ones(2 ** 20, np.float32)
begin = 1 + (-whole.ctypes.data % 64) // 4
batch = {"inputs": whole[begin : begin + 960 * 1024].reshape(-1, 1024)}
add = jax.jit(lambda batch: f(batch["inputs"][:1]))
def do():
    add(put_batch(batch, mesh)).block_until_ready()
"""
)


def faults(code=BYTES, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code + COUNTED],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_used_again_unless_the_user_tuned_it():
    assert faults() < 100
    assert faults(MALLOC_TOP_PAD_="0") > 100


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
@pytest.mark.parametrize("code", [STEP, BATCH])
def test_a_step_uses_its_memory_again_in_the_thread_that_calls(code):
    assert faults(code) < 100_000  # in another thread almost always 24,576 a time


# The second piece is not mapped by itself, since by the first one glibc has raised its threshold.
PIECES = """
import sys
from contextlib import ExitStack
from flaxdl.backend.malloc import keep_freed_memory, return_freed_memory
stack = ExitStack()
for name in sys.argv[1:]:
    if name == "end":
        stack.close()
    else:
        stack.enter_context(globals()[name]())
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before = resident()
for _ in range(2):
    bytearray(b"x") * 2 ** 24
print((resident() - before) // 2**20)
"""


def left(*names):
    """MiB that a process keeps of pieces of 16 MiB after it has called functions of that name."""
    done = subprocess.run(
        [sys.executable, "-c", PIECES, *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_returned_unless_it_is_to_be_kept():
    assert left("return_freed_memory") < 4
    assert left("keep_freed_memory", "return_freed_memory") > 12


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_what_a_run_has_kept_is_returned_at_its_end():
    """Piece after piece is kept within a run; afterwards glibc gives large pieces back again."""
    assert held(kept=True) > 200
    assert held(kept=False) < 40


def held(*, kept):
    """MiB that a process holds of 256 MiB it has freed, within a run or after it."""
    code = f"""
from flaxdl.backend.malloc import keep_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20
with keep_freed_memory():
    before = resident()
    bytearray(b"x") * 2 ** 28
    within = resident() - before
print(within if {kept} else resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)
