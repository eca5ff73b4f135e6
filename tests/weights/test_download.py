"""Downloads from a local server that truncates, sends wrong files, or ignores ranges."""

import hashlib
import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from flaxdl.filesystem.paths import cache_folder
from flaxdl.weights import download as module
from flaxdl.weights.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under every path except /missing, as configured by the fields."""

    content = CONTENT
    knows_ranges = True
    sends = len(CONTENT)  # bytes, then the connection is cut
    content_range = None  # a header to send instead of the right one

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/model.pth"

    def handle_error(self, request, client_address):
        """Ignores clients that disconnect."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if self.path == "/missing":
            self.send_error(404)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and server.knows_ranges else 0
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted and server.knows_ranges else 200)
        if wanted and server.knows_ranges:
            right = f"bytes {start}-{total - 1}/{total}"
            self.send_header("Content-Range", server.content_range or right)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        self.wfile.write(server.content[start : start + server.sends])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "new" / "folder" / "model.pth"
    assert download(server.url, path, SHA256[:8]) == path
    assert path.read_bytes() == CONTENT
    assert not path.with_name("model.pth.part").exists()
    assert download(server.url, path, SHA256[:8]) == path
    assert server.requests == [None]


def test_a_cut_download_goes_on_where_it_stopped(server, tmp_path):
    path, part = tmp_path / "model.pth", tmp_path / "model.pth.part"
    server.sends = 100_000
    with pytest.raises(ValueError, match="could not be downloaded") as raised:
        download(server.url, path, SHA256)
    received = part.stat().st_size
    assert 100_000 - module.CHUNK_SIZE < received <= 100_000
    assert part.read_bytes() == CONTENT[:received]
    message = str(raised.value)
    assert message.startswith(f"{server.url} could not be downloaded: ")
    assert f"again to resume after {received:,} bytes" in message
    assert message.endswith(f"To download it manually, save the file as {path}")
    assert not path.exists()
    server.sends = len(CONTENT)
    download(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={received}-"]


def test_a_server_without_ranges_sends_all_of_it(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(b"x" * 100)
    server.knows_ranges = False
    assert download(server.url, tmp_path / "model.pth", SHA256).read_bytes() == CONTENT


def test_a_server_that_sends_another_range_is_not_believed(server, tmp_path):
    (tmp_path / "model.pth.part").write_bytes(CONTENT[:100])
    server.content_range = f"bytes 99-{len(CONTENT) - 1}/{len(CONTENT)}"
    with pytest.raises(ValueError, match="was discarded"):
        download(server.url, tmp_path / "model.pth", SHA256)


@pytest.mark.parametrize(
    ("part", "requests"),
    [
        (CONTENT, [f"bytes={len(CONTENT)}-"]),  # stopped between the last byte and the renaming
        (CONTENT + b"more", [f"bytes={len(CONTENT) + 4}-", None]),
    ],
)
def test_a_part_that_is_complete_or_too_long(server, tmp_path, part, requests):
    (tmp_path / "model.pth.part").write_bytes(part)
    assert download(server.url, tmp_path / "model.pth", SHA256).read_bytes() == CONTENT
    assert server.requests == requests


def test_a_wrong_file_is_thrown_away(server, tmp_path):
    path = tmp_path / "model.pth"
    wrong = b"<html>Please log in</html>"
    server.content = wrong
    with pytest.raises(ValueError, match="was discarded") as raised:
        download(server.url, path, SHA256[:8])
    message = str(raised.value)
    for part in (server.url, hashlib.sha256(wrong).hexdigest(), SHA256[:8]):
        assert part in message
    assert message.endswith(f"save the file as {path}")
    assert {file.name for file in tmp_path.iterdir()} <= {"model.pth.lock"}


def test_a_file_put_there_by_hand_is_verified(server, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(CONTENT)
    assert download(server.url, path, SHA256) == path
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="Delete it to download it again"):
        download(server.url, path, SHA256)
    assert path.exists()
    assert server.requests == []


def test_a_file_in_a_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", path)

    # As root, whom permissions do not stop, would not notice.
    monkeypatch.setattr("filelock.FileLock", refuse)
    path = tmp_path / "model.pth"
    path.write_bytes(CONTENT)
    tmp_path.chmod(0o555)
    try:
        assert download(server.url, path, SHA256) == path
        with pytest.raises(ValueError, match=r"could not be downloaded: .*Permission denied"):
            download(server.url, tmp_path / "other.pth", SHA256)
    finally:
        tmp_path.chmod(0o755)
    assert server.requests == []


def test_an_address_without_a_file(server, tmp_path):
    url = server.url.replace("model.pth", "missing")
    with pytest.raises(ValueError, match=r"could not be downloaded: 404 .* as .*model\.pth$"):
        download(url, tmp_path / "model.pth", SHA256)
    assert not (tmp_path / "model.pth.part").exists()


def test_no_server_at_all(server, tmp_path):
    url = server.url
    server.server_close()
    with pytest.raises(ValueError, match=r"could not be downloaded: .*manually.* as .*model\.pth$"):
        download(url, tmp_path / "model.pth", SHA256)


def test_a_server_that_falls_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", (0.2, 0.2))
    with (
        http.server.HTTPServer(("127.0.0.1", 0), Handler) as silent,  # accepts, and never answers
        pytest.raises(ValueError, match="could not be downloaded: .*timed out"),
    ):
        download(f"http://127.0.0.1:{silent.server_port}/", tmp_path / "model.pth", SHA256)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"could not be downloaded: .*file"):
        download(server.url, tmp_path / "file" / "model.pth", SHA256)


def test_of_several_at_once_one_downloads(server, tmp_path):
    path, found = tmp_path / "model.pth", []
    threads = [
        threading.Thread(target=lambda: found.append(download(server.url, path, SHA256)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [path] * 4
    assert server.requests == [None]


def test_where_downloads_are_kept(monkeypatch):
    for name in ("FLAXDL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path.home() / ".cache" / "flaxdl"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/flaxdl")
    monkeypatch.setenv("FLAXDL_CACHE", "~/weights")
    assert cache_folder() == Path.home() / "weights"
