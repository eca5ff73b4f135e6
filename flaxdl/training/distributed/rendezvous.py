"""Where the processes of a run meet before JAX connects them.

JAX waits for a missing process without a word, and then aborts. Here process 0 listens at the
coordinator's address until all have come. It says who is missing, and tells all of them if they
were started with settings that contradict each other.

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
_LINGER_SECONDS = 3  # for which latecomers are still told what is wrong
_LONGEST = 10_000  # bytes of a message


@dataclass(frozen=True)
class Rendezvous:
    """The meeting of one run's processes, as one of them sees it."""

    coordinator: str
    """HOST:PORT of process 0."""
    num_processes: int
    process_id: int
    timeout: float = 60.0
    """Seconds to wait for the others."""
    notice: float = 10.0
    """Seconds after which a warning says who is missing."""

    @property
    def _address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def meet(self) -> None:
        """Returns when all processes have come.

        Raises:
            UserError: in every process that has come, if some do not in time, two have the same
                id, or they disagree about how many there are.
        """
        if self.process_id == 0:
            self._receive_all()
        else:
            self._visit()

    def _receive_all(self) -> None:
        try:
            listener = _listen(self._address[1])
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen on port {self._address[1]} ({error.strerror}); another "
                "program or another process 0 may use it: choose another distributed.coordinator"
            ) from error
        with ExitStack() as stack:
            with listener:
                guests, fault = self._gather(listener, stack)
            # JAX's own service takes the port now, so it had to be free before anyone is told.
            for guest in guests:
                _send(guest, {"fault": fault})
        if fault is not None:
            raise UserError(fault)

    def _gather(
        self, listener: socket.socket, stack: ExitStack
    ) -> tuple[list[socket.socket], str | None]:
        """The connections of those who came, and what is wrong with them."""
        guests: list[socket.socket] = []
        missing = set(range(1, self.num_processes))
        fault, start, is_told = None, time.monotonic(), False
        deadline = start + self.timeout
        while (missing or fault is not None) and time.monotonic() < deadline:
            if not is_told and time.monotonic() > start + self.notice:
                text = f"waiting for {_named(missing)} at {self.coordinator}"
                _LOGGER.warning("%s", text)
                for guest in guests:
                    _send(guest, {"notice": text})
                is_told = True
            guest = _accept(listener)
            if guest is None:
                continue
            stack.enter_context(guest)
            greeting = _receive(guest)
            if greeting is None:  # somebody else's
                continue
            guests.append(guest)
            fault = fault or self._fault_of(greeting, missing)
            missing -= {greeting["process_id"]}
            if fault is not None:
                deadline = min(deadline, time.monotonic() + _LINGER_SECONDS)
        if missing and fault is None:
            fault = (
                f"{_named(missing)} (of {self.num_processes}) did not connect to "
                f"{self.coordinator} within {self.timeout:g} s"
            )
        return guests, fault

    def _fault_of(self, greeting: dict[str, Any], missing: set[int]) -> str | None:
        number, count = greeting["process_id"], greeting["num_processes"]
        if count != self.num_processes:
            return (
                f"process {number} was started with num_processes {count}, but process 0 with "
                f"{self.num_processes}"
            )
        return None if number in missing else f"two processes have process_id {number}"

    def _visit(self) -> None:
        with self._connected() as host:
            host.settimeout(self.timeout + 2 * _LINGER_SECONDS)  # process 0 may have come last
            _send(host, {"process_id": self.process_id, "num_processes": self.num_processes})
            with host.makefile("rb") as messages:
                while (message := _read(messages)) is not None and "notice" in message:
                    _LOGGER.warning("%s", message["notice"])
        if message is None or "fault" not in message:
            raise UserError(f"the service at {self.coordinator} is not process 0 of a flaxdl run")
        if message["fault"] is not None:
            raise UserError(message["fault"])

    def _connected(self) -> socket.socket:
        """A connection to process 0, which may start later than this one."""
        start, is_told = time.monotonic(), False
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
            if not is_told and elapsed > self.notice:
                _LOGGER.warning("waiting for process 0 at %s (%s)", self.coordinator, reason)
                is_told = True
            time.sleep(_POLL_SECONDS)


def _listen(port: int) -> socket.socket:
    """A socket on all addresses of this machine."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be off; a port that is taken is so for IPv4 as well
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _accept(listener: socket.socket) -> socket.socket | None:
    """The next connection; None if there is none for a moment."""
    listener.settimeout(_POLL_SECONDS)
    try:
        guest, _ = listener.accept()
    except TimeoutError:
        return None
    return guest


def _receive(guest: socket.socket) -> dict[str, Any] | None:
    guest.settimeout(_LINGER_SECONDS)
    with guest.makefile("rb") as messages:
        greeting = _read(messages)
    # Anything else is a stranger's.
    is_ours = greeting is not None and all(
        type(greeting.get(name)) is int for name in ("process_id", "num_processes")
    )
    return greeting if is_ours else None


def _read(messages: Any) -> dict[str, Any] | None:
    """The next message; None if there is none, or something else."""
    try:
        message = json.loads(messages.readline(_LONGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _send(receiver: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # it has gone, and JAX will say so
        receiver.sendall(json.dumps(message).encode() + b"\n")


def _named(processes: set[int]) -> str:
    numbers = ", ".join(map(str, sorted(processes)))
    return f"process {numbers}" if len(processes) == 1 else f"processes {numbers}"
