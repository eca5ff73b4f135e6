"""Lock files, with a fallback for file systems without locks."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
# Errors raised by flock on network file systems that are mounted without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[None]:
    """Context manager that holds a lock file, or logs a warning if locks are not supported.

    Args:
        path: path of the lock file; created if missing.
        timeout: maximum time to wait for another process to release the lock, in seconds; by
            default, there is no maximum.

    Raises:
        filelock.Timeout: if another process still holds the lock after this time.
        OSError: if the lock file cannot be created.
    """
    import filelock

    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOGGER.warning(
            "the file system of %s does not support locks (%s): another process could write there "
            "at the same time",
            path.parent,
            error.strerror,
        )
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Returns True if a process holds a lock file, and False if none does or this is unknown.

    The check acquires the lock for a moment, so callers of `locked` should use a short timeout
    instead of 0.
    """
    import filelock

    if not path.exists():
        return False
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    except OSError:
        return False
    lock.release()
    return False
