"""The cache of compiled programs: private, and the user's to choose."""

import os
import subprocess
import sys

import jax
import pytest

from flaxdl.backend import compilation_cache as compiled
from flaxdl.backend.compilation_cache import enable_compilation_cache

NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without a cache, and JAX's settings as they were afterwards."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_in_a_private_folder(home):
    enable_compilation_cache()
    folder = home / ".cache" / "flaxdl" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_read_or_write_is_not_used(home):
    folder = home / ".cache" / "flaxdl" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_nor_is_a_link_to_another_folder(home, tmp_path_factory):
    (home / ".cache" / "flaxdl").mkdir(parents=True)
    (home / ".cache" / "flaxdl" / "compiled").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("chosen", ["", "/somewhere/else"])
def test_what_the_user_chose_stays(home, monkeypatch, chosen):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_second_process_compiles_nothing(home):
    code = (
        "import flaxdl.backend.compilation_cache, jax, jax.numpy as jnp\n"
        "flaxdl.backend.compilation_cache.enable_compilation_cache()\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))\n"
        "print('/jax/compilation_cache/cache_hits' in hits)\n"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        ).stdout.strip()
        for _ in range(2)
    ]
    assert found == ["False", "True"]


@pytest.mark.parametrize("mode", [0o777, 0o775])
@pytest.mark.parametrize("above", [".cache/flaxdl", ".cache", "."])
def test_where_others_can_exchange_it_it_is_not_used(home, above, mode, monkeypatch):
    monkeypatch.setattr(os, "getgid", lambda: 12345)  # no group of one's own
    (home / ".cache" / "flaxdl").mkdir(parents=True)
    (home / above).chmod(mode)
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    (home / above).chmod(0o755)
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is not None


def test_a_link_above_is_followed_and_both_ends_are_looked_at(home, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "inner").mkdir()
    (home / ".cache").symlink_to(elsewhere / "inner")
    elsewhere.chmod(0o777)
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    elsewhere.chmod(0o700)
    enable_compilation_cache()
    folder = home / ".cache" / "flaxdl" / "compiled"
    assert jax.config.jax_compilation_cache_dir == str(folder)


def test_a_folder_of_somebody_else_is_no_place_for_it(tmp_path):
    assert compiled._is_safe(tmp_path)
    os.chown(tmp_path, 12345, -1)
    assert not compiled._is_safe(tmp_path)
