"""The processes of a run meet, or each of them says why not; here each is a thread."""

import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.launch import free_port

from flaxdl.training.distributed import rendezvous
from flaxdl.training.distributed.rendezvous import Rendezvous

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(rendezvous, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(rendezvous, "_LINGER_SECONDS", 0.3)


@pytest.fixture
def port():
    return free_port()


def outcome(port, process_id, count, timeout=5.0, notice=5.0):
    """None, or the message of the error."""
    try:
        Rendezvous(f"localhost:{port}", count, process_id, timeout, notice).meet()
    except ValueError as error:
        return str(error)
    return None


def meet(port, *processes, **settings):
    """What becomes of processes (id, count) that start together."""
    with ThreadPoolExecutor(len(processes)) as pool:
        found = [pool.submit(outcome, port, *process, **settings) for process in processes]
    return [future.result() for future in found]


def test_all_come_and_the_port_is_free_again(port):
    for _ in range(2):
        assert meet(port, (2, 3), (0, 3), (1, 3)) == [None] * 3
        with socket.create_server(("localhost", port)):
            pass
    assert meet(port, (0, 1)) == [None]


def test_who_is_missing_is_said_by_all(port, caplog):
    found = meet(port, (0, 4), (2, 4), timeout=0.6, notice=0.2)
    assert found == [f"processes 1, 3 (of 4) did not connect to localhost:{port} within 0.6 s"] * 2
    assert caplog.messages == [f"waiting for processes 1, 3 at localhost:{port}"] * 2


def test_without_process_0_the_others_say_so(port, caplog):
    (found,) = meet(port, (1, 2), timeout=0.3, notice=0.1)
    start = f"process 1 could not reach process 0 at localhost:{port} within 0.3 s ("
    assert found.startswith(start)
    assert caplog.messages == [f"waiting for process 0 at localhost:{port} (Connection refused)"]


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        (
            [(0, 2), (1, 3), (2, 3)],
            "process [12] was started with num_processes 3, but process 0 with 2",
        ),
        (
            [(0, 3), (1, 3), (2, 2)],
            "process 2 was started with num_processes 2, but process 0 with 3",
        ),
        ([(0, 3), (1, 3), (1, 3)], "two processes have process_id 1"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error_everywhere(port, processes, message):
    found = meet(port, *processes)
    assert len(set(found)) == 1
    assert re.fullmatch(message, found[0])


def test_a_port_that_is_taken_is_named(port):
    with socket.create_server(("localhost", port)):
        (found,) = meet(port, (0, 2))
    assert f"process 0 cannot listen on port {port} (Address already in use" in found


def test_who_is_no_process_of_the_run_is_passed_over(port):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(outcome, port, 0, 2)
        for text in (
            b"PRI * HTTP/2.0\r\n\r\n",
            b"[1]\n",
            b'{"process_id": [], "num_processes": 2}\n',
            b"",
            b"\xff" * 20_000 + b"\n",
        ):
            while True:
                try:
                    stranger = socket.create_connection(("localhost", port), timeout=5)
                    break
                except OSError:
                    pass
            with stranger:
                stranger.sendall(text)
        assert outcome(port, 1, 2) is None
        assert first.result() is None


def test_what_listens_but_is_no_process_0_is_named(port):
    with socket.create_server(("localhost", port)) as server:

        def answer():
            guest, _ = server.accept()
            with guest:
                guest.recv(1000)
                guest.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert f"the service at localhost:{port} is not process 0" in outcome(port, 1, 2)
        thread.join()
