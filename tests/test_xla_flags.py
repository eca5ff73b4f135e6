"""Flags of the compiler, and the fault of jaxlib 0.10.2 that one of them avoids."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from flaxdl.xla_flags import set_cpu_flags

WIDTH = "--xla_cpu_prefer_vector_width=512"
FUSION = "--xla_cpu_experimental_ynn_fusion_type=individual_dot"

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


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.10.1", [WIDTH]),
        ("0.10.2", [WIDTH, FUSION]),
        ("0.11.0", [WIDTH]),
        ("0.12.0.1", [WIDTH]),
        ("0.13.0", []),  # which may not know it
    ],
)
def test_flags_are_for_the_releases_that_have_a_use_for_them(monkeypatch, version, expected):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    set_cpu_flags()
    assert os.environ["XLA_FLAGS"].split() == ["--xla_other=1", *expected]


@pytest.mark.parametrize("given", [f"{WIDTH[:-3]}256 {FUSION}", f"{FUSION[:-14]} {WIDTH}"])
def test_what_the_user_set_stays(monkeypatch, given):
    monkeypatch.setattr(metadata, "version", lambda _: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", given)
    set_cpu_flags()
    assert os.environ["XLA_FLAGS"] == given
