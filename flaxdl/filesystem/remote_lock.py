"""A lock in a bucket, so that two machines do not train in the same workdir by mistake.

It is best effort, since not every store creates objects atomically. What protects the files of a
run from a second one is that objects of snapshots never change.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flaxdl.errors import UserError
from flaxdl.filesystem.remote import RemoteFolder

_LOGGER = logging.getLogger(__name__)
_NAME = "lock.json"
_RENEWAL = 15.0  # seconds
_EXPIRY = 120.0  # seconds without a renewal; a renewal may be retried for as long
_POLL = 1.0  # seconds between two looks at the lock of another run


class RemoteLock:
    """The lock of a remote folder, renewed in the background while it is held.

    The lock of a process that no longer runs on this machine is taken over immediately, and
    that of another machine when it has not been renewed for two minutes, by the clock of this one.

    Args:
        remote: folder in a bucket.
        owner: random name of this process.
    """

    def __init__(self, remote: RemoteFolder, owner: str):
        self._remote = remote
        self._owner = owner
        self._renewals = 0

    def is_mine(self) -> bool:
        """Returns True if this process still holds the lock; takes it again if nobody holds it.

        Raises:
            OSError: if the bucket cannot be read.
        """
        holder = self._holder()
        if holder:
            return holder.get("owner") == self._owner
        return self._remote.create(_NAME, self._content())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context manager that holds the lock.

        Raises:
            UserError: if another process holds it.
            OSError: if the bucket cannot be read or written.
        """
        self._acquire()
        released = threading.Event()
        thread = threading.Thread(target=self._renew, args=(released,), name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            released.set()
            thread.join()
            self._release()

    def _acquire(self) -> None:
        if not self._remote.create(_NAME, self._content()):
            self._wait()
            self._remote.write(_NAME, self._content())
            time.sleep(_POLL)  # another process may have taken over at the same moment
        if self._holder().get("owner") != self._owner:
            raise self._in_use()

    def _wait(self) -> None:
        """Waits until the lock of another process is free, or its expiry.

        Raises:
            UserError: if the other process renews it.
        """
        first, start = self._holder(), time.monotonic()
        if not first or _is_dead(first):
            return
        _LOGGER.warning(
            "%s is locked by a run on %s; waiting up to %d s to see whether it still runs",
            self._remote.url,
            first.get("host", "another machine"),
            _EXPIRY,
        )
        while time.monotonic() - start < _EXPIRY:
            time.sleep(_POLL)
            holder = self._holder()
            if not holder:
                return
            if holder != first:
                raise self._in_use()

    def _in_use(self) -> UserError:
        host = self._holder().get("host", "another machine")
        return UserError(
            f"another run, on {host}, is training in {self._remote.url}; end it first, or use "
            "another --workdir (its lock expires two minutes after its machine is gone)"
        )

    def _renew(self, released: threading.Event) -> None:
        while not released.wait(_RENEWAL):
            self._renewals += 1
            try:
                if self.is_mine():
                    self._remote.write(_NAME, self._content())
            except OSError as error:
                _LOGGER.warning(
                    "the lock of %s could not be renewed, which is tried again: %s",
                    self._remote.url,
                    error,
                )

    def _release(self) -> None:
        try:
            if self._holder().get("owner") == self._owner:
                self._remote.remove([_NAME])
        except OSError as error:
            _LOGGER.warning("%s remains locked for two minutes: %s", self._remote.url, error)

    def _holder(self) -> dict[str, Any]:
        """Returns the content of the lock; empty if there is none."""
        try:
            content = self._remote.read(_NAME)
        except FileNotFoundError:
            return {}
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError):  # being written, to a file
            return {"content": repr(content)}

    def _content(self) -> bytes:
        holder = {"owner": self._owner, **_this_process(), "renewals": self._renewals}
        return json.dumps(holder).encode()


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "system": _system(), "process": os.getpid()}


def _system() -> str:
    """Identifies this start of the machine and its container, where Linux tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead(holder: dict[str, Any]) -> bool:
    """Returns True if a lock is of a process of this machine that has ended."""
    here = _this_process()
    if not here["system"] or any(holder.get(name) != here[name] for name in ("host", "system")):
        return False
    return not Path(f"/proc/{holder.get('process')}").exists()
