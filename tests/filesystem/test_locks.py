"""Locks, also where the file system has none."""

import errno
import fcntl
import os

import filelock
import pytest

from flaxdl.filesystem.locks import is_held, locked
from flaxdl.runs.workdir import Workdir

pytestmark = pytest.mark.quick


def refuse(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP])
def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog, number):
    refuse(monkeypatch, number)
    with Workdir(tmp_path / "run").locked():
        assert (tmp_path / "run").is_dir()
        assert not Workdir(tmp_path / "run").is_in_use
    (message,) = caplog.messages
    assert message.startswith(f"the file system of {tmp_path / 'run'} does not support locks (")
    assert not list(tmp_path.iterdir())  # nothing had claimed it


def test_other_errors_are_errors(tmp_path, monkeypatch):
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(ValueError, match=r"cannot be written \(Input/output error\)"):
        Workdir(tmp_path / "run").locked().__enter__()


def test_who_holds_a_lock_keeps_others_out(tmp_path):
    path = tmp_path / ".lock"
    assert not is_held(path)
    assert not path.exists()
    with locked(path):
        assert is_held(path)
        with pytest.raises(filelock.Timeout):
            locked(path, timeout=0).__enter__()
    assert not is_held(path)
    path.touch()
    assert not is_held(path)  # of a process that has ended


def test_a_run_may_start_while_its_lock_is_looked_at(tmp_path):
    workdir = Workdir(tmp_path)
    looked_at = locked(tmp_path / ".lock")
    looked_at.__enter__()
    real, calls = filelock.FileLock.acquire, []

    def acquire(self, *arguments, **keywords):
        calls.append(keywords)
        looked_at.__exit__(None, None, None)  # which takes a moment
        return real(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filelock.FileLock, "acquire", acquire)
        with workdir.locked():
            pass
    assert calls == [{"timeout": 0.2}]
