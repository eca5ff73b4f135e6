import errno
import os

import pytest

from flaxdl.errors import UserError
from flaxdl.filesystem.outputs import not_written, output_file, writing


def test_the_name_of_an_output_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    suffixes = (".csv", ".jsonl")
    assert output_file("~/a.csv", suffixes) == tmp_path / "a.csv"
    assert output_file("b.JSONL", suffixes).name == "b.JSONL"
    with pytest.raises(UserError, match=r"must be a \.csv or \.jsonl file, got c\.xlsx$"):
        output_file("c.xlsx", suffixes)
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(UserError, match=r"d\.csv cannot be written: it is a folder$"):
        output_file(tmp_path / "d.csv", suffixes)


def test_a_failure_to_write_names_the_file_and_the_reason(tmp_path):
    path = tmp_path / "no folder" / "a.txt"
    with pytest.raises(UserError) as raised, writing(path):
        path.write_text("a")
    assert str(raised.value) == f"{path} cannot be written: {os.strerror(errno.ENOENT)}"
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    assert not_written(path, ValueError("not an image")).endswith(": not an image")
    assert not_written(path, OSError("no errno")).endswith(": no errno")
    with pytest.raises(KeyError), writing(path):
        raise KeyError("a")
