"""The C library's memory and XLA's threads while a run computes on a CPU.

These are settings of the whole process, so they last only as long as a run or a command.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_CHOICES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)
# What glibc arrives at by itself in a process that frees large pieces. Its first thresholds, which
# it adjusts, cannot be had back.
_USUAL = {
    _MMAP_MAX: 65_536,
    _MMAP_THRESHOLD: 32 * 2**20,
    _TRIM_THRESHOLD: 64 * 2**20,
    _TOP_PAD: 2**17,
}


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Within, the process keeps the memory that it frees on a CPU, and uses it for the next step.

    By itself glibc gives large pieces back to the system at once, so that every step of a training
    has all its activations mapped, and filled with zeros, again: a quarter of the time of a small
    network. At the end the memory is returned. Another platform or C library, or one that the user
    has tuned by environment variables, is left alone.
    """
    with _tuned({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}):
        yield


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Within, large pieces of memory are returned to the system when they are freed, on a CPU.

    By itself glibc keeps pieces of up to 32 MiB after some time, and a process that computes batch
    after batch grows by a hundred MiB of gaps between them. Within `keeping_freed_memory`, or where
    the user has tuned the C library by environment variables, nothing changes.
    """
    with _tuned({_MMAP_THRESHOLD: 2**20}):
        yield


@contextmanager
def computing_in_calling_thread() -> Iterator[None]:
    """Within, JAX's CPU backend computes in the thread that calls, if it has not started before.

    The memory of a step is one piece. In a thread of XLA's own glibc maps a piece of more than 64
    MiB again at every step, even within `keeping_freed_memory`: a seventh of the time of a ResNet.
    A backend that has started keeps its way.
    """
    name = "jax_cpu_enable_async_dispatch"
    before = jax.config.read(name)
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)


_is_tuned = False


@contextmanager
def _tuned(options: Mapping[int, int]) -> Iterator[None]:
    global _is_tuned
    library = _glibc()
    if library is None or _is_tuned or jax.default_backend() != "cpu":
        yield
        return
    _is_tuned = True
    _set(library, options)
    try:
        yield
    finally:
        _is_tuned = False
        _set(library, _USUAL)
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library, if it is glibc and the user has not tuned it."""
    if any(name in os.environ for name in _CHOICES):
        return None
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    return None


def _set(library: Any, options: Mapping[int, int]) -> None:
    for option, value in options.items():
        library.mallopt(option, value)
