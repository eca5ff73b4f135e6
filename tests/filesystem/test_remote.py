"""Folders in buckets: Amazon S3, Google Cloud Storage and files, also when requests fail."""

import http.client
import os
import sys
import threading
from pathlib import Path

import pytest
from helpers.buckets import faulty, new_bucket, point_to, server

from flaxdl.errors import UserError
from flaxdl.filesystem import remote
from flaxdl.filesystem.remote import RemoteFolder, is_url

pytest.importorskip("s3fs")
pytest.importorskip("gcsfs")


@pytest.fixture(params=["s3", "gs", "file"])
def folder(request, monkeypatch, tmp_path):
    """An empty folder of each kind."""
    if request.param == "file":
        return RemoteFolder(f"file://{tmp_path}/folder")
    point_to(monkeypatch, request.param, server(request.param))
    return RemoteFolder(f"{new_bucket(request.param)}/folder/")


@pytest.fixture
def hurried(monkeypatch):
    """Retries without waiting."""
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(remote, "LONGEST_DELAY", 0.001)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gs://bucket/x", True),
        ("s3://bucket", True),
        (Path("gs://bucket/x"), True),
        ("https://example.org/x.csv", True),
        ("file:///x", True),
        ("gs:/bucket", False),
        ("C:/x", False),
        ("C:\\x", False),
        ("C://x", False),
        (Path("C:/x"), False),
        ("model.pt:key", False),
        ("folder/a://b", False),
        (Path("runs/x"), False),
        ("", False),
    ],
)
def test_urls_are_recognized(path, expected):
    assert is_url(path) is expected


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://", "gs:// names no bucket: expected gs://bucket/folder"),
        ("s3:///x", "s3:///x names no bucket"),
        ("gcs://", "gcs:// names no bucket"),
        ("ftb://bucket/x", "ftb://bucket/x has an unknown scheme: ftb. Supported are gs://"),
        ("folder", "folder is not a URL"),
    ],
)
def test_what_is_no_folder_is_one_message(url, message):
    with pytest.raises(UserError) as raised:
        RemoteFolder(url)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs"), ("gs", "fsspec")])
def test_a_missing_package_is_named(monkeypatch, scheme, package):
    for name in (package, f"{package}.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install 'flaxdl\[remote\]'"):
        RemoteFolder(f"{scheme}://bucket/x")


def test_the_url_has_no_trailing_slash(monkeypatch, tmp_path):
    point_to(monkeypatch, "gs", "http://127.0.0.1:1")
    assert RemoteFolder("gs://bucket/a/").url == "gs://bucket/a"
    assert RemoteFolder("s3://bucket").url == "s3://bucket"
    assert RemoteFolder(Path(f"file://{tmp_path}").as_posix()).url == f"file://{tmp_path}"


def test_what_is_written_is_read(folder, tmp_path):
    assert folder.names() == []
    folder.write("b/c.txt", b"first")
    folder.write("b/c.txt", b"second")
    folder.write("a 1#?*.txt", b"")
    assert folder.names() == ["a 1#?*.txt", "b/c.txt"]
    assert folder.read("b/c.txt") == b"second"
    assert folder.read("a 1#?*.txt") == b""
    folder.download("b/c.txt", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"second"


def test_names_are_listed_by_prefix(folder):
    for name in ("steps/10/a", "steps/1/b", "steps/1/c/d", "stops"):
        folder.write(name, b"")
    assert folder.names("steps/1/") == ["steps/1/b", "steps/1/c/d"]
    assert folder.names("st") == ["steps/1/b", "steps/1/c/d", "steps/10/a", "stops"]
    assert folder.names("steps/1") == ["steps/1/b", "steps/1/c/d", "steps/10/a"]
    assert folder.names("none/") == []
    assert RemoteFolder(f"{folder.url}/ste").names() == []


def test_another_process_sees_what_is_written(folder):
    other = RemoteFolder(folder.url)
    assert other.names() == []
    folder.write("a", b"1")
    assert other.names() == ["a"]
    folder.write("a", b"22")
    assert other.read("a") == b"22"
    folder.remove(["a"])
    assert other.names() == []


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # of gcsfs
def test_a_large_file_is_copied_in_parts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_PART", 5 << 20)  # the smallest of Amazon S3
    content = os.urandom(11 << 20)
    (tmp_path / "large").write_bytes(content)
    folder.upload(tmp_path / "large", "large")
    folder.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content


def test_what_does_not_exist_is_named(folder, tmp_path):
    expected = f"{folder.url}/a/b does not exist"
    with pytest.raises(FileNotFoundError, match=expected):
        folder.read("a/b")
    with pytest.raises(FileNotFoundError, match=expected):
        folder.download("a/b", tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == []
    with pytest.raises(FileNotFoundError, match="nowhere"):
        folder.upload(tmp_path / "nowhere", "a/b")
    assert folder.names() == []


def test_a_bucket_that_does_not_exist_is_named(bucket):
    folder = RemoteFolder(f"{bucket}-none/x")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError, match=f"{folder.url}/a does not exist, or its bucket"):
        folder.write("a", b"1")


def test_removed_files_are_gone_and_missing_ones_no_error(folder):
    for name in ("a", "b/c", "d"):
        folder.write(name, b"")
    folder.remove(["a", "none", "b/c"])
    assert folder.names() == ["d"]


def test_a_file_is_created_once(folder):
    assert folder.create("x/lock", b"1")
    assert not folder.create("x/lock", b"2")
    assert not folder.create("x/lock", b"1")
    assert folder.read("x/lock") == b"1"
    folder.write("x/lock", b"2")  # as a lock is renewed
    assert not folder.create("x/lock", b"2")
    folder.remove(["x/lock"])
    assert folder.create("x/lock", b"3")


def test_one_of_eight_callers_creates_a_file(folder):
    if folder.url.startswith("gs"):
        pytest.skip("the emulator does not implement conditional requests")
    created, start = [], threading.Barrier(8)

    def create(number):
        start.wait()
        created.append((number, folder.create("lock", b"%d" % number)))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for number, won in created if won]
    assert len(created) == 8
    assert folder.read("lock") == b"%d" % winner


def test_a_file_that_was_created_before_the_connection_was_lost_counts(
    bucket, monkeypatch, hurried
):
    with faulty(monkeypatch, bucket, fraction=0.4, faults=("response cut",), seed=1) as proxy:
        folder = RemoteFolder(bucket)
        assert all(folder.create(str(number), b"%d" % number) for number in range(12))
    assert proxy.counts["response cut"] > 3


def test_failing_requests_are_repeated(bucket, monkeypatch, hurried, tmp_path):
    (tmp_path / "file").write_bytes(b"file")
    with faulty(monkeypatch, bucket, fraction=0.2, seed=2) as proxy:
        folder = RemoteFolder(bucket)
        for number in range(8):
            folder.write(f"{number}/a", b"%d" % number)
            folder.upload(tmp_path / "file", f"{number}/b")
            assert folder.create(f"{number}/c", b"%d" % number)
            assert not folder.create(f"{number}/c", b"other")
            assert folder.read(f"{number}/c") == b"%d" % number
            assert folder.names(f"{number}/") == [f"{number}/{name}" for name in "abc"]
            assert folder.read(f"{number}/a") == b"%d" % number
            folder.download(f"{number}/b", tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == b"file"
        folder.remove(folder.names())
    assert set(proxy.counts) == {"ok", "500", "429", "delay", "request cut", "response cut"}
    assert RemoteFolder(bucket).names() == []


@pytest.mark.parametrize("fault", ["500", "503", "429", "request cut"])
def test_what_keeps_failing_is_one_message(bucket, monkeypatch, hurried, fault):
    monkeypatch.setattr(remote, "GIVE_UP_AFTER", 0.02)
    with (
        faulty(monkeypatch, bucket, fraction=1.0, faults=(fault,)) as proxy,
        pytest.raises(OSError, match="retries") as raised,
    ):
        RemoteFolder(bucket).read("a")
    message = str(raised.value)
    assert message.startswith(f"{bucket}/a: ")
    assert message.endswith("; retries did not help")
    assert "\n" not in message
    if fault.isdigit():
        assert http.client.responses[int(fault)] in message
    assert proxy.counts[fault] > 1


@pytest.mark.parametrize("fault", ["401", "403"])
def test_a_denied_bucket_is_one_message_without_retries(bucket, monkeypatch, fault):
    with (
        faulty(monkeypatch, bucket, fraction=1.0, faults=(fault,)) as proxy,
        pytest.raises(PermissionError) as raised,
    ):
        RemoteFolder(bucket).write("a", b"")
    logins = "AWS_ACCESS_KEY_ID" if bucket.startswith("s3") else "GOOGLE_APPLICATION_CREDENTIALS"
    assert str(raised.value).startswith(f"no access to {bucket}/a: ")
    assert logins in str(raised.value)
    assert "\n" not in str(raised.value)
    assert proxy.counts.total() == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "InvalidAccessKeyId"])
def test_expired_credentials_are_one_message(monkeypatch, code):
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    folder = RemoteFolder("s3://bucket/x")
    response = {"Error": {"Code": code, "Message": "no longer valid"}}
    response["ResponseMetadata"] = {"HTTPStatusCode": 400}

    def expired(_):
        raise translate_boto_error(ClientError(response, "GetObject"))

    monkeypatch.setattr(folder._files, "cat_file", expired)
    with pytest.raises(PermissionError, match="no access to s3://bucket/x/a: no longer valid"):
        folder.read("a")


def test_without_credentials_the_variables_are_named(monkeypatch, tmp_path):
    point_to(monkeypatch, "s3", server("s3"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionError, match="Unable to locate credentials.*AWS_ACCESS_KEY_ID"):
        RemoteFolder("s3://bucket/x").names()


def test_an_interrupted_download_leaves_the_older_file(bucket, monkeypatch, hurried, tmp_path):
    folder = RemoteFolder(bucket)
    folder.write("a", b"new")
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(remote, "GIVE_UP_AFTER", 0.02)
    with faulty(monkeypatch, bucket) as proxy:
        proxy.is_down = True
        with pytest.raises(OSError, match="retries did not help"):
            RemoteFolder(bucket).download("a", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_other_mistakes_are_not_repeated(bucket, monkeypatch):
    with (
        faulty(monkeypatch, bucket, fraction=1.0, faults=("400",)) as proxy,
        pytest.raises(OSError, match=f"{bucket}/a: .*Bad Request"),
    ):
        RemoteFolder(bucket).write("a", b"")
    assert proxy.counts.total() == 1
