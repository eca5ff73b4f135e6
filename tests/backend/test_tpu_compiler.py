"""Compile-only TPU devices: libtpu may be missing, and names of topologies may be wrong."""

import importlib.util

import pytest

from flaxdl import UserError
from flaxdl.backend.tpu_compiler import tpu_devices
from flaxdl.cli import main
from flaxdl.training.distributed.mesh import make_mesh


def without_libtpu(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else real(name)
    )


def with_libtpu(monkeypatch):
    """Pretends that libtpu is installed, for errors that are found before it is loaded."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


def test_without_libtpu_one_error_names_the_extra(monkeypatch, capsys):
    without_libtpu(monkeypatch)
    code = main(["inspect", "--config", "digits_cnn", "--memory", "--topology", "v5e:1x1"])
    assert code == 2
    error = capsys.readouterr().err
    assert error.strip() == (
        "compiling for v5e:1x1 needs the TPU compiler, the package libtpu: run "
        "`pip install 'flaxdl[tpu]'`"
    )


@pytest.mark.parametrize("name", ["v5e", "1x1", "v5e:0x1", "v5e:2x", "v5e:2x2x2x2", "v5e:999x999"])
def test_a_name_of_another_form_is_refused_with_the_allowed_ones(monkeypatch, name):
    with_libtpu(monkeypatch)
    with pytest.raises(UserError, match=f"no TPU topology '{name}'; it must be .* v5e:2x4"):
        tpu_devices(name)


def test_a_topology_without_memory_is_refused(capsys):
    assert main(["inspect", "--config", "digits_cnn", "--topology", "v5e:1x1"]) == 2
    assert "--topology v5e:1x1 needs --memory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["v5e:3x3", "v9:1x1"])
def test_what_the_compiler_does_not_support_is_refused(name):
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match=f"no TPU topology '{name}' .INVALID_ARGUMENT.* v5e:1x1"):
        tpu_devices(name)


@pytest.mark.parametrize(
    ("name", "count"),
    [("v5e:1x1", 1), ("v5e:2x4", 8), ("v6e:1x2", 2), ("v4:2x2x1", 4), ("v3:1x1", 2)],
)
def test_topologies_have_devices(name, count):
    pytest.importorskip("libtpu")
    devices = tpu_devices(name)
    assert len(devices) == count
    assert make_mesh(devices=devices).shape["data"] == count
