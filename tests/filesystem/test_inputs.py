"""Local copies of files and folders at URLs: what is fetched, and when it is fetched again."""

import http.server
import json
import threading
from functools import partial
from pathlib import Path

import pytest
from helpers.buckets import faulty

from flaxdl.errors import UserError
from flaxdl.filesystem import inputs, remote
from flaxdl.filesystem.inputs import input_path
from flaxdl.filesystem.outputs import output_file
from flaxdl.filesystem.paths import local_path
from flaxdl.filesystem.remote import RemoteFolder
from flaxdl.filesystem.remote_systems import file_system

pytest.importorskip("s3fs")
pytest.importorskip("gcsfs")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and retries without waiting."""
    monkeypatch.setenv("FLAXDL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(remote, "LONGEST_DELAY", 0.001)
    return tmp_path / "cache" / "urls"


@pytest.fixture
def fetched(monkeypatch):
    """Names of the files that are fetched, in sorted order; cleared by `clear`."""
    names = []
    download = RemoteFolder.download

    def noted(self, name, path, progress=None):
        names.append(name)
        download(self, name, path, progress)

    monkeypatch.setattr(RemoteFolder, "download", noted)
    return names


def contents(folder):
    """Content of the files in a folder by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_local_paths_stay():
    assert input_path("data/x.csv") == Path("data/x.csv")
    assert input_path(Path("~/x.csv")) == Path.home() / "x.csv"


@pytest.mark.parametrize("as_path", [False, True])
def test_a_file_is_fetched_once(bucket, fetched, as_path):
    RemoteFolder(bucket).write("data/x.csv", b"1,2")
    url = f"{bucket}/data/x.csv"
    for _ in range(2):
        path = input_path(Path(url) if as_path else url)
        assert path.name == "x.csv"
        assert path.read_bytes() == b"1,2"
    assert fetched == [""]
    assert input_path(url) == path


def test_a_folder_is_fetched_whole_and_then_what_changed(bucket, fetched):
    folder = RemoteFolder(f"{bucket}/data")
    files = {f"{name}/{number}.txt": name.encode() for name in "ab" for number in range(3)}
    for name, content in files.items():
        folder.write(name, content)
    RemoteFolder(bucket).write("data2/x", b"")
    path = input_path(folder.url)
    assert contents(path) == files
    assert sorted(fetched) == sorted(files)
    fetched.clear()
    folder.write("a/1.txt", b"A")  # of the same size
    folder.write("c.txt", b"c")
    folder.remove(["b/0.txt"])
    assert input_path(f"{folder.url}/") == path
    assert sorted(fetched) == ["a/1.txt", "c.txt"]
    changed = {**files, "a/1.txt": b"A", "c.txt": b"c"}
    changed.pop("b/0.txt")
    assert contents(path) == changed
    folder.remove(["b/1.txt", "b/2.txt"])
    assert sorted(one.name for one in input_path(folder.url).iterdir()) == ["a", "c.txt"]


def test_files_of_the_copy_that_are_missing_or_cut_are_fetched_again(bucket, fetched):
    folder = RemoteFolder(bucket)
    for name in ("a", "b", "c"):
        folder.write(name, b"content")
    path = input_path(bucket)
    (path / "a").unlink()
    (path / "b").write_bytes(b"con")
    (path / ".c.0123.unfinished").write_bytes(b"con")  # of a process that was killed
    fetched.clear()
    assert contents(input_path(bucket)) == dict.fromkeys("abc", b"content")
    assert sorted(fetched) == ["a", "b"]


def test_an_interrupted_fetch_leaves_whole_files_and_is_resumed(bucket, monkeypatch, fetched):
    folder = RemoteFolder(bucket)
    for number in range(6):
        folder.write(f"{number}", b"content")
    monkeypatch.setattr(inputs, "THREADS", 1)

    def interrupted(*arguments):
        files = file_system(*arguments)
        get_file = files.get_file

        def interrupting(remote_path, path, **options):
            if remote_path.endswith("3"):
                Path(path).write_bytes(b"con")
                raise KeyboardInterrupt
            get_file(remote_path, path, **options)

        files.get_file = interrupting
        return files

    with monkeypatch.context() as patch:
        patch.setattr(remote, "file_system", interrupted)
        with pytest.raises(KeyboardInterrupt):
            input_path(bucket)
    (copy,) = (inputs.cache_folder() / "urls").glob("*/copy")
    found = contents(copy / bucket.rpartition("/")[2])
    assert set(found.values()) == {b"content"}
    assert "3" not in found
    fetched.clear()
    assert len(contents(input_path(bucket))) == 6
    assert "3" in fetched
    assert not {"0", "1", "2"} & set(fetched)


def test_without_a_network_a_complete_copy_is_used_with_a_warning(bucket, monkeypatch, caplog):
    RemoteFolder(bucket).write("x", b"content")
    monkeypatch.setattr(inputs, "PATIENCE", 0.01)
    with faulty(monkeypatch, bucket, fraction=0.0) as proxy:
        path = input_path(f"{bucket}/x")
        caplog.clear()
        proxy.is_down = True
        assert input_path(f"{bucket}/x") == path
        (message,) = [one.message for one in caplog.records if one.name.startswith("flaxdl")]
        assert f"{bucket}/x: " in message
        assert f"The copy in {path} is used, which may be outdated" in message
        monkeypatch.setattr(remote, "GIVE_UP_AFTER", 0.01)
        with pytest.raises(UserError, match=f"^{bucket}/y: .*; retries did not help$"):
            input_path(f"{bucket}/y")


def test_without_a_network_an_incomplete_copy_is_an_error(bucket, monkeypatch, cache):
    RemoteFolder(bucket).write("x", b"content")
    input_path(bucket)
    (record,) = cache.glob("*/record.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "is_complete": False}))
    monkeypatch.setattr(remote, "GIVE_UP_AFTER", 0.01)
    with faulty(monkeypatch, bucket) as proxy:
        proxy.is_down = True
        with pytest.raises(UserError, match="retries did not help"):
            input_path(bucket)


def test_a_folder_arrives_although_requests_fail(bucket, monkeypatch):
    files = {f"{number}/x": b"%d" % number for number in range(20)}
    folder = RemoteFolder(bucket)
    for name, content in files.items():
        folder.write(name, content)
    with faulty(monkeypatch, bucket, fraction=0.2, seed=2) as proxy:
        assert contents(input_path(bucket)) == files
    assert proxy.counts.total() > proxy.counts["ok"]


def test_a_missing_object_is_one_message(bucket):
    with pytest.raises(UserError, match=f"^{bucket}/none.csv does not exist, or is empty$"):
        input_path(f"{bucket}/none.csv")


def test_an_object_that_was_removed_is_an_error_in_spite_of_the_copy(bucket):
    folder = RemoteFolder(bucket)
    folder.write("x", b"")
    input_path(f"{bucket}/x")
    folder.remove(["x"])
    with pytest.raises(UserError, match="x does not exist"):
        input_path(f"{bucket}/x")


def test_a_denied_bucket_is_one_message(bucket, monkeypatch):
    with (
        faulty(monkeypatch, bucket, fraction=1.0, faults=("403",)),
        pytest.raises(UserError, match=f"^no access to {bucket}: .*Credentials are looked for in"),
    ):
        input_path(bucket)


@pytest.mark.parametrize("name", ["../x", "a/../../x"])
def test_names_outside_the_folder_are_refused(bucket, monkeypatch, name, tmp_path):
    stamps = {name: remote.Stamp(1, "1")}
    monkeypatch.setattr(RemoteFolder, "stamps", lambda *_, **__: stamps)
    with pytest.raises(UserError, match="which cannot be the name of a local file"):
        input_path(bucket)
    assert not list(tmp_path.rglob("x"))


def test_files_of_a_web_server_are_fetched_again_when_they_change(tmp_path, fetched):
    served = tmp_path / "served"
    served.mkdir()
    (served / "x.csv").write_bytes(b"1")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for content in (b"1", b"1", b"22"):
            (served / "x.csv").write_bytes(content)
            path = input_path(f"{url}/x.csv")
            assert path.read_bytes() == content
        with pytest.raises(UserError, match="none.csv does not exist"):
            input_path(f"{url}/none.csv")
        server.shutdown()
    assert len(fetched) in (2, 3)  # the clock may have moved on between equal contents
    assert path.name == "x.csv"


@pytest.mark.parametrize("path", ["gs://bucket/x.html", Path("s3://bucket/x.html")])
def test_outputs_are_local(path):
    with pytest.raises(UserError, match="is a URL; this must be a local path"):
        output_file(path, (".html",))
    with pytest.raises(UserError, match="is a URL; this must be a local path"):
        local_path(path)
