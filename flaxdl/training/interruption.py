"""Handling of SIGINT and SIGTERM: immediate while nothing can be lost, otherwise between steps."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stops a run, after saving its state; `received` is the signal."""

    def __init__(self, number: signal.Signals, message: str):
        super().__init__(message)
        self.received = number

    @property
    def exit_code(self) -> int:
        """Exit code by shell convention: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.received


class Interruption:
    """Signal handling of a run."""

    _received: signal.Signals | None = None
    _is_raised = False
    _is_immediate = True
    _polls = 0

    def poll(self) -> signal.Signals | None:
        """Returns the signal that asks the run to stop, or None; cheap enough for every step.

        All processes of a run must call it the same number of times. If one of them receives a
        signal, JAX's distributed runtime (which handles SIGTERM) reports it to all processes at the
        same call, a second or two later.
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
        """Context manager in which SIGINT and SIGTERM raise `Interrupted`, unless `postponed`.

        A second SIGINT always raises KeyboardInterrupt immediately. Outside the main thread,
        signals are not handled, since Python allows no signal handlers there.

        Raises:
            Interrupted: on exit, if a postponed signal has not been raised yet.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        alone = jax.process_count() == 1

        def handle(number: int, _frame: object) -> None:
            if self._received is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._received = signal.Signals(number)
            if not alone:
                os.kill(os.getpid(), signal.SIGTERM)
            elif self._is_immediate:
                raise self._interrupted()

        def resend(unraisable: Any) -> None:
            # Python drops exceptions that it cannot propagate, such as during garbage collection.
            if not isinstance(unraisable.exc_value, Interrupted):
                hook(unraisable)
                return
            self._received, self._is_raised = None, False
            number = unraisable.exc_value.received
            threading.Timer(0.1, os.kill, (os.getpid(), number)).start()

        hook = sys.unraisablehook
        sys.unraisablehook = resend
        numbers = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
        previous = {number: signal.signal(number, handle) for number in numbers}
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
        """Context manager that postpones signals: they are recorded for `poll` and not raised.

        Signals remain postponed after the context, until the end of `listening`.
        """
        self._is_immediate = False
        yield

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Context manager inside `postponed` in which signals raise `Interrupted` again.

        It is for code that can be interrupted without loss, such as waiting for data.

        Raises:
            Interrupted: when a signal arrives, or if one was postponed.
        """
        self._is_immediate = True
        try:
            if self._received is not None:
                raise self._interrupted()
            yield
        finally:
            self._is_immediate = False

    def _interrupted(self) -> Interrupted:
        assert self._received is not None
        self._is_raised = True
        message = f"{self._received.name}: nothing to save; run the same command to resume"
        return Interrupted(self._received, message)
