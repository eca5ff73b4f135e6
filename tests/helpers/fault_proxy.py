"""An HTTP proxy before a server that makes a fraction of the requests fail."""

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("500", "429", "delay", "request cut", "response cut")
DELAY = 0.05  # seconds


class FaultProxy:
    """Forwards requests to a server, except for a fraction of them.

    Those get status 500 or 429, a delay, or no response: before the server sees the request
    ("request cut"), or after it was carried out ("response cut").

    Attributes:
        url: address of the proxy.
        fraction: fraction of requests that fail, which may be changed at any time.
        is_down: True to cut every request, as if the network were gone.
        counts: number of requests by what happened to them; "ok" for forwarded ones.
    """

    def __init__(self, target, *, fraction=0.2, faults=FAULTS, seed=0):
        self.target = urlsplit(target).netloc
        self.fraction = fraction
        self.faults = faults
        self.is_down = False
        self.counts = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def draw(self):
        """Returns what happens to the next request."""
        with self._lock:
            fault = "ok"
            if self.is_down:
                fault = "request cut"
            elif self._random.random() < self.fraction:
                fault = self._random.choice(self.faults)
            self.counts[fault] += 1
            return fault

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_):
        """Clients may leave at any time."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.draw()
        if fault == "delay":
            time.sleep(DELAY)
        if fault == "request cut":
            self._cut()
        elif fault.isdigit():
            self._send(int(fault), [], b"")
        else:
            status, headers, content = self._forwarded(body)
            if fault == "response cut":
                self._cut()
            else:
                self._send(status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _answer  # noqa: N815

    def _forwarded(self, body):
        connection = http.client.HTTPConnection(self.proxy.target, timeout=30)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body or None, dict(self.headers))
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def _send(self, status, headers, content):
        self.send_response(status)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        # A response to HEAD states the length of the content that it leaves out.
        length = lengths[0] if self.command == "HEAD" and lengths else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def _cut(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
