"""Where a run notices that it is one of several: what the environment says, and a server."""

import http.server
import threading

import pytest

from flaxdl.training import processes
from flaxdl.training.processes import Distributed


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "MEGASCALE_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def connected(monkeypatch):
    """Whether JAX was asked to connect, without doing so."""
    calls = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *a, **k: calls.append(k))
    return calls


@pytest.mark.parametrize(
    ("variables", "is_cluster"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # in a script of sbatch, outside srun
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
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
        monkeypatch.setattr(processes, "_has_accelerator", lambda: True)
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
    monkeypatch.setattr(processes, "_has_accelerator", lambda: False)
    Distributed().connect()
    assert not connected
