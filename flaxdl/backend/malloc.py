"""Settings of glibc's malloc and of XLA's dispatch for runs on CPU.

They apply to the whole process, so they are set only during a run or a command.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_ENVIRONMENT_VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)
# Values that glibc's dynamic adjustment reaches in a process that frees large blocks. Its initial
# dynamic thresholds cannot be restored.
_DEFAULTS = {
    _MMAP_MAX: 65_536,
    _MMAP_THRESHOLD: 32 * 2**20,
    _TRIM_THRESHOLD: 64 * 2**20,
    _TOP_PAD: 2**17,
}


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Context manager that lets malloc keep freed memory for the next training step, on CPU.

    By default, glibc returns large blocks to the system immediately, so every training step has to
    map and zero the memory of all its activations again. In a small network, this takes a quarter
    of the step time. The memory is returned when the context ends. The context has no effect on
    other platforms and C libraries, or if the user has set malloc options in environment variables.
    """
    with _tuned({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}):
        yield


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Context manager that lets malloc return large blocks to the system when freed, on CPU.

    By default, glibc raises its threshold over time and keeps blocks of up to 32 MiB; a process
    that computes many batches then grows by a hundred MiB through fragmentation. The context has no
    effect inside `keep_freed_memory`, on other platforms and C libraries, or if the user has set
    malloc options in environment variables.
    """
    with _tuned({_MMAP_THRESHOLD: 2**20}):
        yield


@contextmanager
def synchronous_dispatch() -> Iterator[None]:
    """Context manager that lets JAX's CPU backend compute in the calling thread.

    XLA allocates the temporary memory of a step as one block. With asynchronous dispatch, it does
    so in a thread of its own, where glibc maps a block of more than 64 MiB again at every step,
    even inside `keep_freed_memory`. This takes a seventh of the step time of a ResNet. The context
    has no effect if the backend has already been initialized.
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
        _set(library, _DEFAULTS)
        library.malloc_trim(0)


def _glibc() -> Any:
    """Returns the C library if it is glibc and the user has not set malloc options, else None."""
    if any(name in os.environ for name in _ENVIRONMENT_VARIABLES):
        return None
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        return library if library.mallopt and library.malloc_trim else None
    return None


def _set(library: Any, options: Mapping[int, int]) -> None:
    for option, value in options.items():
        library.mallopt(option, value)
