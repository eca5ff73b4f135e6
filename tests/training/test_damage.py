"""Damaged checkpoints are noticed, named and set aside; benchmarks/flips.py does it more often."""

import hashlib
import shutil
from contextlib import closing

import jax
import numpy as np
import pytest
from helpers import damage

from flaxdl.training.checkpoint_files import Damaged
from flaxdl.training.checkpoints import Checkpoints
from flaxdl.training.sharding import make_mesh, shapes_on

SHAPES = shapes_on(make_mesh(devices=jax.devices()[:1]), damage.CREATE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return folder, damage.save_two(folder)


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_any_damage_is_noticed_and_the_checkpoint_before_it_used(saved, tmp_path, caplog):
    folder, (before, _) = saved
    random = np.random.default_rng(0)
    done = [damage.recover(folder, tmp_path / "work", before, random) for _ in range(60)]
    assert {kind for kind, _ in done} == {"bit", "cut", "removed"}
    assert len({file for _, file in done}) > 8
    assert len(caplog.messages) == 60
    for message, (_, file) in zip(caplog.messages, done, strict=True):
        assert "that of step 2: " in message
        assert file in message or file == "SHA256SUMS"  # with whatever it no longer lists
        assert message.endswith("The run resumes from step 1")


def test_the_manifest_is_what_sha256sum_writes(saved):
    checkpoint = saved[0] / "2"
    lines = (checkpoint / "SHA256SUMS").read_text().splitlines()
    listed = {name: checksum for checksum, name in (line.split("  ") for line in lines)}
    files = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()}
    assert set(listed) == files - {"SHA256SUMS"}
    for name, checksum in listed.items():
        assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == checksum


def test_a_file_that_was_never_written_is_damage(copy):
    (copy / "2" / "d" / "more").write_bytes(b"")
    message = "step 2 .* is damaged: d/more not in its manifest"
    with closing(Checkpoints(copy)) as checkpoints, pytest.raises(Damaged, match=message):
        checkpoints.restore(SHAPES, 2)


def test_without_a_sound_one_nothing_is_changed(copy):
    (copy / "2" / "SHA256SUMS").unlink()
    (copy / "1" / "_METADATA").write_bytes(b"")
    (copy / "3.partial").mkdir()
    before = sorted(copy.rglob("*"))
    message = (
        "all checkpoints in .*copy are damaged; that of step 1: _METADATA changed; "
        "that of step 2: its SHA256SUMS is missing. Nothing was changed"
    )
    for _ in range(2):
        with closing(Checkpoints(copy)) as checkpoints, pytest.raises(Damaged, match=message):
            checkpoints.recover()
    assert sorted(copy.rglob("*")) == before


def test_what_was_cut_off_while_it_was_written_is_none(copy):
    for name in ("3.partial.orbax-checkpoint-tmp", "3.partial"):
        shutil.copytree(copy / "2", copy / name)
    with closing(Checkpoints(copy)) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.recover() == 2
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_a_step_damaged_twice_is_set_aside_twice(copy):
    for _ in range(2):
        (copy / "2" / "_METADATA").unlink()
        with closing(Checkpoints(copy)) as checkpoints:
            assert checkpoints.recover() == 1
            checkpoints.save(checkpoints.restore(SHAPES, 1).replace(step=jax.numpy.int32(2)))
    assert sorted(path.name for path in (copy / "damaged").iterdir()) == ["2", "2.1"]


def test_the_newest_and_the_best_are_kept(saved, tmp_path):
    _, (state, _) = saved
    with closing(Checkpoints(tmp_path, keep=2, best_step=lambda: 2)) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(state.replace(step=jax.numpy.int32(step)))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]
