"""Servers of buckets on this machine: Amazon S3 (moto) and Google Cloud Storage."""

import itertools
import json
import logging
import urllib.request
from contextlib import contextmanager
from functools import cache

import pytest

_NAMES = itertools.count()


@cache
def server(scheme):
    """The address of a server of `s3` or `gs` that runs until the process ends."""
    if scheme == "s3":
        moto = pytest.importorskip("moto.server")
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        started = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        started.start()
        return "http://{}:{}".format(*started.get_host_and_port())
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    started = emulator.create_server("127.0.0.1", 0, in_memory=True)
    started._api.daemon = True
    started.start()
    started._api._httpd.handle_error = lambda *_: None  # clients may leave at any time
    return f"http://127.0.0.1:{started._api._httpd.server_port}"


def point_to(monkeypatch, scheme, address):
    """Sets the variables that send the requests of a scheme to a server, with credentials."""
    if scheme == "s3":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    else:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("NO_GCE_CHECK", "true")  # asks no machine of Google for credentials


def new_bucket(scheme):
    """Creates an empty bucket on the server of this process, and returns its URL."""
    name = f"bucket-{next(_NAMES)}"
    if scheme == "s3":
        request = urllib.request.Request(f"{server(scheme)}/{name}", method="PUT")
    else:
        body = json.dumps({"name": name}).encode()
        request = urllib.request.Request(f"{server(scheme)}/storage/v1/b", body)
        request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request).close()
    return f"{scheme}://{name}"


@pytest.fixture(params=["s3", "gs"])
def bucket(request, monkeypatch):
    """The URL of an empty bucket, once on each server."""
    pytest.importorskip({"s3": "s3fs", "gs": "gcsfs"}[request.param])
    point_to(monkeypatch, request.param, server(request.param))
    return new_bucket(request.param)


@contextmanager
def faulty(monkeypatch, bucket, **options):
    """Context manager in which a proxy makes requests to a bucket fail; yields the FaultProxy."""
    from helpers.fault_proxy import FaultProxy

    scheme = bucket.partition(":")[0]
    with FaultProxy(server(scheme), **options) as proxy, monkeypatch.context() as patch:
        point_to(patch, scheme, proxy.url)
        yield proxy
