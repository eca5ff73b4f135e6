"""XLA's CPU compiler computes right numbers with flaxdl, and a wrong one is reported."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import flaxdl
from flaxdl.backend import xla_flags
from flaxdl.backend.xla_flags import set_cpu_flags, warn_if_cpu_is_wrong

FUSION = "--xla_cpu_experimental_ynn_fusion_type=individual_dot"
RELEASE = tuple(map(int, metadata.version("jaxlib").split(".")[:3]))

# Prints the errors of both programs; `before` runs first.
CANARY = """
{before}
import json, logging
import flaxdl.backend.xla_flags
logging.basicConfig(format="%(message)s")
flaxdl.backend.xla_flags.warn_if_cpu_is_wrong()
print(json.dumps(flaxdl.backend.xla_flags.cpu_errors()))
"""
JAX_FIRST = "import jax; jax.numpy.ones(2) + 1"  # the backend starts without the flag


def canary(before=""):
    """The errors in a process with production flags, and its warnings."""
    paths = [str(Path(flaxdl.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", CANARY.format(before=before)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout), done.stderr


@pytest.mark.quick
def test_with_flaxdl_the_numbers_are_right():
    errors, warnings = canary()
    assert len(errors) == 2
    assert max(errors.values()) < 1e-6
    assert warnings == ""


@pytest.mark.skipif(RELEASE > (0, 12, 0), reason="not known whether this jaxlib has the fault")
def test_without_the_flag_faulty_releases_are_reported():
    errors, warnings = canary(JAX_FIRST)
    wrong = [name for name, error in errors.items() if not error < 1e-4]
    assert len(wrong) == {False: 0, True: 2 if RELEASE == (0, 10, 2) else 1}[RELEASE >= (0, 10, 2)]
    assert ("computes wrong results on this CPU" in warnings) == bool(wrong)
    assert (FUSION in warnings) == bool(wrong)


def test_a_wrong_number_is_reported_once(monkeypatch, caplog):
    monkeypatch.setattr(xla_flags, "cpu_errors", lambda: {"a sum": float("nan"), "a product": 1e-7})
    warn_if_cpu_is_wrong.cache_clear()
    warn_if_cpu_is_wrong()
    warn_if_cpu_is_wrong()
    warn_if_cpu_is_wrong.cache_clear()
    assert len(caplog.records) == 1
    assert "a sum is off by nan (relative error). Do not trust the results" in caplog.text


@pytest.mark.parametrize(
    ("version", "library_knows", "expected"),
    [
        ("0.8.0", True, []),
        ("0.10.1", True, []),
        ("0.10.2", False, [FUSION]),
        ("0.10.2.dev20260101", False, [FUSION]),
        ("0.11.0", False, [FUSION]),
        ("0.12.0.1", False, [FUSION]),
        ("0.12.0.2", False, []),
        ("0.12.0.2", True, [FUSION]),
        ("0.13.0", False, []),  # which may not know the flag
        ("0.13.0", True, [FUSION]),
    ],
)
def test_faulty_releases_get_the_flag(monkeypatch, version, library_knows, expected):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    monkeypatch.setattr(xla_flags, "_library_contains", lambda _: library_knows)
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    set_cpu_flags()
    assert os.environ["XLA_FLAGS"].split() == ["--xla_other=1", *expected]


def test_the_library_is_searched_for_the_flag():
    assert xla_flags._library_contains("xla_cpu_experimental_ynn_fusion_type") == (
        RELEASE >= (0, 10, 2)
    )
    assert not xla_flags._library_contains("xla_flag_that_no_release_has")


def test_a_flag_that_the_user_has_set_is_kept(monkeypatch):
    given = f"{FUSION.removesuffix('individual_dot')} --xla_other=1"
    monkeypatch.setattr(metadata, "version", lambda _: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", given)
    set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == given
