"""Memory that is freed and taken again, without asking the system for it."""

import ctypes
import os
import subprocess
import sys

import pytest

# Page faults while 64 MiB are taken, written and freed ten times, behind a first time.
CODE = """
import resource
from flaxdl.allocation import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(2 ** 26)
before = faults()
for _ in range(10):
    bytearray(2 ** 26)
print(faults() - before)
"""


def faults(**environment):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
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
