"""Damaged checkpoints are noticed, named and set aside; benchmarks/flips.py does it more often."""

import hashlib
import os
import shutil
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import damage

from flaxdl.errors import SaveError
from flaxdl.training.checkpoints import manager as checkpoints_module
from flaxdl.training.checkpoints.folder import CheckpointFolder, CorruptCheckpoint
from flaxdl.training.checkpoints.manager import Checkpoints
from flaxdl.training.distributed.placement import shapes_on

SHAPES = shapes_on(damage.PLACEMENT, damage.CREATE)


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
        assert "(step 2: " in message
        assert file in message or file == "SHA256SUMS"  # with whatever it no longer lists
        assert message.endswith("; resuming from step 1")


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
    with closing(Checkpoints(copy)) as checkpoints, pytest.raises(CorruptCheckpoint, match=message):
        checkpoints.restore(SHAPES, 2)


def test_without_a_sound_one_nothing_is_changed(copy):
    (copy / "2" / "SHA256SUMS").unlink()
    (copy / "1" / "_METADATA").write_bytes(b"")
    (copy / "3.partial").mkdir()
    before = sorted(copy.rglob("*"))
    message = (
        r"all checkpoints in .*copy are damaged \(step 1: _METADATA changed; "
        r"step 2: its SHA256SUMS is missing\). Nothing was changed"
    )
    for _ in range(2):
        with (
            closing(Checkpoints(copy)) as checkpoints,
            pytest.raises(CorruptCheckpoint, match=message),
        ):
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


def test_a_file_that_vanishes_while_it_is_read_is_named(copy, monkeypatch):
    lost = copy / "2" / "_METADATA"

    def is_file(path):
        if path == lost:
            lost.unlink()
        return path == lost or os.path.isfile(path)

    monkeypatch.setattr(Path, "is_file", is_file)
    message = "step 2 .* damaged: _METADATA cannot be read .No such file"
    with closing(Checkpoints(copy)) as checkpoints, pytest.raises(CorruptCheckpoint, match=message):
        checkpoints.restore(SHAPES, 2)


def test_what_an_earlier_removal_has_left_is_not_in_the_way(saved, tmp_path):
    _, (state, _) = saved
    for step in (1, 2):
        left = tmp_path / f"{step}.partial"
        left.mkdir()
        (left / "file").touch()
    with closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state.replace(step=jax.numpy.int32(step)))
        checkpoints.wait()
    folder = CheckpointFolder(tmp_path)
    assert folder.steps() == [2]
    (tmp_path / "2.partial").mkdir()
    (tmp_path / "2.partial" / "file").touch()
    folder.remove(2)
    assert list(tmp_path.iterdir()) == []


def test_a_file_called_damaged_is_left_alone(copy, caplog):
    (copy / "damaged").write_text("mine")
    (copy / "2" / "_METADATA").unlink()
    with closing(Checkpoints(copy)) as checkpoints:
        assert checkpoints.recover() == 1
    assert (copy / "damaged").read_text() == "mine"
    assert [path.name for path in (copy / "damaged.1").iterdir()] == ["2"]
    assert f"were moved to {copy / 'damaged.1'}" in caplog.text


@pytest.mark.parametrize("name", ["0006", "²", "6", "+6", "6 ", "1_0"])
def test_other_names_and_files_are_no_checkpoints(copy, name):
    if name == "6":
        (copy / name).touch()
    else:
        shutil.copytree(copy / "2", copy / name)
    assert CheckpointFolder(copy).steps() == [1, 2]
    assert CheckpointFolder(copy).recover() == 2


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ValueError, match="checkpoints must be a folder of checkpoints"):
        Checkpoints(tmp_path / "checkpoints")


def test_a_checkpoint_is_on_disk_before_it_has_its_name(saved, tmp_path, monkeypatch):
    shutil.copytree(saved[0] / "2", tmp_path / "2.partial")
    synced, fsync = set(), os.fsync

    def note(number):
        synced.add((os.fstat(number).st_ino, (tmp_path / "2").exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    CheckpointFolder(tmp_path).complete(2, None)
    paths = [tmp_path / "2", *(tmp_path / "2").rglob("*")]
    assert len(paths) > 8
    expected = {(path.stat().st_ino, False) for path in paths}
    assert synced == {*expected, (tmp_path.stat().st_ino, True)}


def test_without_room_for_more_files_nothing_is_begun(saved, tmp_path, monkeypatch, caplog):
    _, (state, _) = saved
    usual = os.statvfs

    def statvfs(path):
        found = usual(path)
        return SimpleNamespace(
            **{name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
            | {"f_files": 5000, "f_favail": 3}
        )

    monkeypatch.setattr(os, "statvfs", statvfs)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state)
        with pytest.raises(SaveError, match="step 1 cannot be written: The file system has almost"):
            checkpoints.wait()
    assert len(caplog.messages) == 1
    assert list(tmp_path.iterdir()) == []


def test_file_systems_that_do_not_count_files_have_room(saved, tmp_path, monkeypatch):
    _, (state, _) = saved
    usual = os.statvfs
    names = ("f_bavail", "f_frsize", "f_bsize", "f_blocks", "f_bfree")

    def statvfs(path):  # as on CephFS
        found = usual(path)
        kept = {name: getattr(found, name) for name in names}
        return SimpleNamespace(**kept, f_files=5000, f_favail=-1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state)
        checkpoints.wait()
        assert checkpoints.steps() == [1]


def test_all_processes_decide_by_what_the_first_one_lists(saved, tmp_path, monkeypatch):
    _, (state, _) = saved

    def broadcast_from_first(value):  # which sees a checkpoint that is not visible here yet
        return [1] if value == [] else value

    monkeypatch.setattr(checkpoints_module, "broadcast_from_first", broadcast_from_first)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.steps() == [1]
        checkpoints.save(state)
        checkpoints.wait()
    assert list(tmp_path.iterdir()) == []
