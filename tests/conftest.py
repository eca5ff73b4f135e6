"""Eight simulated CPU devices for every test, and a compilation cache that all of them share."""

import atexit
import os
import shutil
import tempfile

# Most of the time goes into compilation, which LLVM's cheaper passes shorten. Of a flag that is
# given twice the last counts, so XLA_FLAGS=--xla_backend_optimization_level=3 tests what users run.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=1",
        os.environ.get("XLA_FLAGS", ""),
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Parallel workers, and the processes that tests start, inherit the first one's cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="flaxdl-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"])

import pytest
from quick import is_quick

import flaxdl  # noqa: F401  (before JAX, for the flags that it sets)


def pytest_collection_modifyitems(items):
    """Gives the tests that `quick.QUICK` names their mark."""
    for item in items:
        if is_quick(item.nodeid.removeprefix("tests/")):
            item.add_marker(pytest.mark.quick)
