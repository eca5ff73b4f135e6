"""Rendezvous of the processes of a run before JAX connects them.

JAX waits silently for a missing process, and then aborts. Here, process 0 listens at the
coordinator's address until all processes have connected, logs which ones are missing, and reports
contradictory settings to all of them.

A message is a line of JSON.
"""

import json
import logging
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from flaxdl.errors import UserError

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_LINGER_SECONDS = 3  # time during which processes that connect late still receive an error
_MAX_MESSAGE = 10_000  # bytes


@dataclass(frozen=True)
class Rendezvous:
    """Rendezvous of a run's processes, from the side of one process."""

    coordinator: str
    """Address of process 0, as HOST:PORT."""
    num_processes: int
    process_id: int
    timeout: float = 60.0
    """Time to wait for the other processes, in seconds."""
    notice: float = 10.0
    """Time after which missing processes are logged, in seconds."""

    @property
    def _address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def meet(self) -> None:
        """Waits until all processes have connected.

        Raises:
            UserError: if processes do not connect in time, if two have the same id, or if
                `num_processes` differs; raised in every connected process.
        """
        if self.process_id == 0:
            self._accept_all()
        else:
            self._connect_to_first()

    def _accept_all(self) -> None:
        try:
            listener = _listen(self._address[1])
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {self._address[1]} ({error.strerror}); another "
                "program or another process 0 may use it: choose another distributed.coordinator"
            ) from error
        with ExitStack() as stack:
            with listener:
                connections, error = self._gather(listener, stack)
            # Sent only now that the port is free, because JAX's own service will listen on it.
            for connection in connections:
                _send(connection, {"error": error})
        if error is not None:
            raise UserError(error)

    def _gather(
        self, listener: socket.socket, stack: ExitStack
    ) -> tuple[list[socket.socket], str | None]:
        """Returns the connections of the other processes, and an error message or None."""
        connections: list[socket.socket] = []
        missing = set(range(1, self.num_processes))
        error, start, has_warned = None, time.monotonic(), False
        deadline = start + self.timeout
        while (missing or error is not None) and time.monotonic() < deadline:
            if not has_warned and time.monotonic() > start + self.notice:
                text = f"waiting for {_describe(missing)} at {self.coordinator}"
                _LOGGER.warning("%s", text)
                for connection in connections:
                    _send(connection, {"notice": text})
                has_warned = True
            connection = _accept(listener)
            if connection is None:
                continue
            stack.enter_context(connection)
            hello = _receive(connection)
            if hello is None:  # not a process of flaxdl
                continue
            connections.append(connection)
            error = error or self._check_hello(hello, missing)
            missing -= {hello["process_id"]}
            if error is not None:
                deadline = min(deadline, time.monotonic() + _LINGER_SECONDS)
        if missing and error is None:
            error = (
                f"{_describe(missing)} (of {self.num_processes}) did not connect to "
                f"{self.coordinator} within {self.timeout:g} s"
            )
        return connections, error

    def _check_hello(self, hello: dict[str, Any], missing: set[int]) -> str | None:
        number, count = hello["process_id"], hello["num_processes"]
        if count != self.num_processes:
            return (
                f"process {number} was started with num_processes {count}, but process 0 with "
                f"{self.num_processes}"
            )
        return None if number in missing else f"two processes have process_id {number}"

    def _connect_to_first(self) -> None:
        with self._connected() as host:
            host.settimeout(self.timeout + 2 * _LINGER_SECONDS)  # process 0 may have started last
            _send(host, {"process_id": self.process_id, "num_processes": self.num_processes})
            with host.makefile("rb") as messages:
                while (message := _read(messages)) is not None and "notice" in message:
                    _LOGGER.warning("%s", message["notice"])
        if message is None or "error" not in message:
            raise UserError(f"the service at {self.coordinator} is not process 0 of a flaxdl run")
        if message["error"] is not None:
            raise UserError(message["error"])

    def _connected(self) -> socket.socket:
        """Returns a connection to process 0; retries, since that process may start later."""
        start, has_warned = time.monotonic(), False
        while True:
            try:
                return socket.create_connection(self._address, timeout=self.timeout)
            except OSError as error:
                reason, elapsed = error.strerror or str(error), time.monotonic() - start
            if elapsed > self.timeout:
                raise UserError(
                    f"process {self.process_id} could not reach process 0 at {self.coordinator} "
                    f"within {self.timeout:g} s ({reason})"
                )
            if not has_warned and elapsed > self.notice:
                _LOGGER.warning("waiting for process 0 at %s (%s)", self.coordinator, reason)
                has_warned = True
            time.sleep(_POLL_SECONDS)


def _listen(port: int) -> socket.socket:
    """Returns a socket that listens on all addresses of this machine."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be disabled; a port in use fails for IPv4 too
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _accept(listener: socket.socket) -> socket.socket | None:
    """Returns the next connection; None if there is none within the poll interval."""
    listener.settimeout(_POLL_SECONDS)
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return None
    return connection


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    connection.settimeout(_LINGER_SECONDS)
    with connection.makefile("rb") as messages:
        hello = _read(messages)
    # Anything else is from another program.
    is_ours = hello is not None and all(
        type(hello.get(name)) is int for name in ("process_id", "num_processes")
    )
    return hello if is_ours else None


def _read(messages: Any) -> dict[str, Any] | None:
    """Returns the next message; None if there is none or it is malformed."""
    try:
        message = json.loads(messages.readline(_MAX_MESSAGE))
    except (OSError, ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _send(receiver: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # the receiver has exited; JAX will report it
        receiver.sendall(json.dumps(message).encode() + b"\n")


def _describe(processes: set[int]) -> str:
    numbers = ", ".join(map(str, sorted(processes)))
    return f"process {numbers}" if len(processes) == 1 else f"processes {numbers}"
