"""The compiler fault of jaxlib 0.10.2, seen with and without the flag that avoids it."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from flaxdl.xla_flags import avoid_faulty_cpu_fusions

FLAG = "--xla_cpu_experimental_ynn_fusion_type"

# The rows of x are [i, 0, 0]: the last value is (n - 1) squared, 2 ** 30.
CANARY = """
import jax, jax.numpy as jnp
i = jnp.arange(32769, dtype=jnp.float32)
x = jnp.stack((i, 0 * i, 0 * i), axis=1)
matrix = jnp.eye(3)
f = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))
print(float(f(x)[-1]))
"""
RIGHT = 2.0**30
IS_FAULTY = metadata.version("jaxlib") == "0.10.2"


def canary(prefix, xla_flags=""):
    environment = os.environ | {"XLA_FLAGS": xla_flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", prefix + CANARY],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return float(done.stdout)


def test_with_flaxdl_the_number_is_right():
    assert canary("import flaxdl") == RIGHT


def test_without_flaxdl_only_the_faulty_release_is_wrong():
    assert (canary("") != RIGHT) == IS_FAULTY


@pytest.mark.parametrize("version", ["0.10.1", "0.10.2", "0.11.0", "0.12.0.1"])
def test_only_the_faulty_release_gets_the_flag(monkeypatch, version):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    avoid_faulty_cpu_fusions()
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[0] == "--xla_other=1"
    assert flags[1:] == ([f"{FLAG}=individual_dot"] if version == "0.10.2" else [])


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda _: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=")
    avoid_faulty_cpu_fusions()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}="
