"""Settings of the test suite: simulated devices, the compilation cache, threads."""

import hashlib
import os
import platform
import time
from importlib import metadata
from pathlib import Path

# Most of the time goes into compilation, which LLVM's cheaper passes shorten. Of a flag that is
# given twice the last counts, so XLA_FLAGS=--xla_backend_optimization_level=3 tests what users run.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=1",
        "--xla_cpu_multi_thread_eigen=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each worker has a core of its own.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

_KEPT_DAYS = 14  # since an entry of the compilation cache was last written


def _compilation_cache():
    """A private folder of compiled programs for this processor, jaxlib and these flags."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = platform.processor()
    if cpuinfo.exists():
        of_one_core = cpuinfo.read_text().partition("\n\n")[0].splitlines()
        processor = "".join(x for x in of_one_core if x.startswith(("model name", "flags")))
    key = [processor, metadata.version("jaxlib"), metadata.version("jax"), os.environ["XLA_FLAGS"]]
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(root) / "flaxdl" / "tests" / hashlib.sha256(repr(key).encode()).hexdigest()[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


# Parallel workers, and the processes that tests start, inherit the first one's cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_compilation_cache())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

import flaxdl  # noqa: E402, F401  (before JAX starts, for the flags that it sets)

pytest_plugins = ["helpers.buckets"]

_DEVICES, _LOCAL_DEVICES = jax.devices, jax.local_devices
_visible = 8


def _first(devices):
    return lambda *args, **keywords: devices(*args, **keywords)[:_visible]


jax.devices, jax.local_devices = _first(_DEVICES), _first(_LOCAL_DEVICES)


def pytest_configure(config):
    """Removes old entries from the compilation cache."""
    if hasattr(config, "workerinput"):
        return
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for entry in Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).glob("*-cache"):
        if entry.stat().st_mtime < oldest:
            entry.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Shows one device to a test, before its fixtures are made, or eight where it asks for them.

    Programs for eight simulated devices take longer to compile, and to run on two cores.
    """
    global _visible
    _visible = 8 if item.get_closest_marker("eight_devices") else 1


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty compilation cache, for tests that look into what is compiled."""
    kept = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", kept)
    compilation_cache.reset_cache()
