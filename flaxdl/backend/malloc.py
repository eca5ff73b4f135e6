"""How the C library hands out memory, where XLA computes on a CPU."""

import ctypes
import os
from collections.abc import Mapping

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


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, to use it again for the next step.

    By itself glibc gives large pieces back to the system at once, so that every step of a training
    has all its activations mapped, and filled with zeros, anew: a quarter of the time of a small
    network. The process stays as large as it has ever been. Another C library, or one that the
    user has tuned by environment variables, is left alone.
    """
    _tune({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20})


def return_freed_memory() -> None:
    """Lets this process return large pieces of memory to the system when it frees them.

    By itself glibc keeps pieces of up to 32 MiB after some time, and a process that computes batch
    after batch grows by a hundred MiB of gaps between them. After `keep_freed_memory`, or where the
    user has tuned the C library by environment variables, nothing changes.
    """
    _tune({_MMAP_THRESHOLD: 2**20})


def _tune(options: Mapping[int, int]) -> None:
    if any(name in os.environ for name in _CHOICES):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    for option, value in options.items():
        mallopt(option, value)


def compute_in_calling_thread() -> None:
    """Lets JAX's CPU backend, which must not have started yet, compute in the thread that calls.

    The memory of a step is one piece. In a thread of XLA's own glibc maps a piece of more than 64
    MiB anew at every step, whatever `keep_freed_memory` has asked for: a seventh of the time of a
    ResNet. Where the backend runs already nothing changes.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
