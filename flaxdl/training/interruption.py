"""SIGINT and SIGTERM: at once where nothing can be lost, between two steps elsewhere."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; what it had is saved; `received` is the signal."""

    def __init__(self, number: signal.Signals, message: str):
        super().__init__(message)
        self.received = number

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, as shells have it."""
        return 128 + self.received


class Interruption:
    """Which signal has asked the run to stop, if any."""

    _received: signal.Signals | None = None
    _is_raised = False
    _at_once = True
    _polls = 0

    def poll(self) -> signal.Signals | None:
        """The signal that has asked the run to stop; called often, so cheap.

        All processes of a run poll in step. They are told of a signal to one of them at the same
        poll, a second or two later, by JAX's distributed runtime, which takes SIGTERM for itself.
        """
        if jax.process_count() == 1:
            return self._received
        from jax.experimental import multihost_utils

        self._polls += 1
        if multihost_utils.reached_preemption_sync_point(self._polls):
            self._received = self._received or signal.SIGTERM
            return self._received
        return None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGINT and SIGTERM, which raise `Interrupted` except within `postponed`.

        A second SIGINT stops at once wherever it comes, by KeyboardInterrupt, as Python does.
        Outside the main thread, where Python allows no handlers, signals stay as they are.

        Raises:
            Interrupted: at the end, if a signal was only noted.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        alone = jax.process_count() == 1

        def take(number: int, _frame: object) -> None:
            if self._received is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._received = signal.Signals(number)
            if not alone:
                os.kill(os.getpid(), signal.SIGTERM)
            elif self._at_once:
                raise self._interrupted()

        def take_again(unraisable: Any) -> None:
            # Where Python cannot raise, such as while it collects garbage, it drops what is raised.
            if not isinstance(unraisable.exc_value, Interrupted):
                hook(unraisable)
                return
            self._received, self._is_raised = None, False
            number = unraisable.exc_value.received
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()

        hook = sys.unraisablehook
        sys.unraisablehook = take_again
        numbers = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
        previous = {number: signal.signal(number, take) for number in numbers}
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._received is not None and not self._is_raised:
            raise self._interrupted()

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Within, a signal is only noted, and granted by whoever calls `poll`."""
        self._at_once = False
        yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `postponed`: here nothing can be lost, such as while waiting for data.

        Raises:
            Interrupted: when a signal comes, or has come before.
        """
        self._at_once = True
        try:
            if self._received is not None:
                raise self._interrupted()
            yield
        finally:
            self._at_once = False

    def _interrupted(self) -> Interrupted:
        assert self._received is not None
        self._is_raised = True
        message = f"{self._received.name}: nothing was left to save; run the same command to resume"
        return Interrupted(self._received, message)
