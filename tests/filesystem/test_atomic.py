"""Files are replaced completely, on disk, or not at all."""

import os
import stat

import pytest

from flaxdl.filesystem.atomic import atomic_write

pytestmark = pytest.mark.quick


def test_the_new_file_replaces_the_old_one(tmp_path):
    path = tmp_path / "name"
    path.write_text("old")
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["name"]


def fail_half_way(path):
    path.write_text("half")
    raise RuntimeError


def test_after_an_error_the_old_one_is_as_it_was(tmp_path):
    path = tmp_path / "name"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as unfinished:
        fail_half_way(unfinished)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["name"]


def test_two_at_once_do_not_write_into_each_other(tmp_path):
    path = tmp_path / "name"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("longer text")
        second.write_text("text")
    assert path.read_text() == "longer text"  # of the one that ended last
    assert os.listdir(tmp_path) == ["name"]


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "name").symlink_to(tmp_path / "elsewhere")
    with atomic_write(tmp_path / "name") as unfinished:
        unfinished.write_text("new")
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert (tmp_path / "name").read_text() == "new"


def test_the_longest_names_work(tmp_path):
    with atomic_write(tmp_path / ("ä" * 127)) as unfinished:
        unfinished.write_text("new")
    assert os.listdir(tmp_path) == ["ä" * 127]


def test_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    with atomic_write(tmp_path / "name"):
        pass
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("name", "other")]
    assert modes[0] == modes[1]


def test_the_content_is_on_disk_before_it_has_the_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "name", []

    def fsync(number):
        kind = "folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file"
        seen.append((kind, os.fstat(number).st_size if kind == "file" else None, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
    assert seen == [("file", 3, False), ("folder", None, True)]
