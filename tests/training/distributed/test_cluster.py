"""Where a run notices that it is one of several: what the environment says, and a server."""

import http.server
import socket
import threading
import time

import pytest
from helpers.launch import free_port

from flaxdl.training.distributed import cluster
from flaxdl.training.distributed.cluster import Distributed


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connected(monkeypatch):
    """Whether JAX was asked to connect, without doing so."""
    calls = []
    monkeypatch.setattr(cluster.jax.distributed, "initialize", lambda *a, **k: calls.append(k))
    return calls


@pytest.mark.parametrize(
    ("variables", "is_cluster"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, True),
        # In a script of sbatch, outside srun.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        # In the shell of an allocation, and in a script that was sent off from such a shell.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_the_environment_tells(monkeypatch, connected, variables, is_cluster):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Distributed().connect()
    assert len(connected) == is_cluster
    for call in connected:
        assert call["cluster_detection_method"] is None


@pytest.fixture
def server(monkeypatch):
    """Google's metadata server, for a machine with chips; says what it is told to."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = "/computeMetadata/v1/instance/attributes/worker-network-endpoints"
            known = self.path == path and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known and self.server.answer else 404)
            self.end_headers()
            self.wfile.write(self.server.answer.encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setattr(cluster, "_has_accelerator", lambda: True)
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "is_cluster"),
    [
        ("unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2", True),
        ("::10.0.0.1", False),
        ("", False),
    ],
)
def test_a_tpu_slice_is_known_to_its_server(server, connected, answer, is_cluster):
    server.answer = answer
    Distributed().connect()
    assert len(connected) == is_cluster


def test_nobody_is_asked_where_it_is_known_to_be_alone(server, connected, monkeypatch):
    server.answer = "a,b"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    Distributed().connect()
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    monkeypatch.setattr(cluster, "_has_accelerator", lambda: False)
    Distributed().connect()
    assert not connected


@pytest.mark.parametrize(("takes", "is_told"), [(0.0, False), (0.3, True)])
def test_a_cluster_that_takes_long_is_told_of(monkeypatch, caplog, takes, is_told):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(cluster, "_NOTICE_SECONDS", 0.1)
    initialize = lambda *_, **__: time.sleep(takes)  # noqa: E731
    monkeypatch.setattr(cluster.jax.distributed, "initialize", initialize)
    Distributed().connect()
    assert ("waiting for the other processes" in caplog.text) == is_told


def test_processes_meet_before_jax_connects_them(monkeypatch, connected):
    port = free_port()
    given = Distributed(coordinator=f"localhost:{port}", num_processes=1, process_id=0)
    given.connect()
    assert [call["initialization_timeout"] for call in connected] == [60]
    with socket.create_server(("localhost", port)):
        message = f"could not connect: process 0 cannot listen on port {port}"
        with pytest.raises(ValueError, match=message):
            given.connect()
    assert len(connected) == 1


@pytest.mark.parametrize(("process_id", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_an_id_that_no_process_can_have_is_refused(process_id, count):
    with pytest.raises(ValueError, match=f"got {process_id} of {count}"):
        Distributed(coordinator="localhost:1", num_processes=count, process_id=process_id)
