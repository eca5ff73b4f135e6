"""Lock files, also on file systems that have no locks."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOGGER = logging.getLogger(__name__)
# What flock answers on network file systems that are mounted without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, *, timeout: float = -1) -> Iterator[None]:
    """Holds a lock file, unless the file system has no locks, which is warned of.

    Args:
        path: the lock file, which is created.
        timeout: seconds to wait for another process; forever if negative.

    Raises:
        filelock.Timeout: if another process still holds it.
        OSError: if the file cannot be created.
    """
    import filelock

    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOGGER.warning(
            "the file system of %s has no locks (%s): nothing keeps another process from writing "
            "there at the same time",
            path.parent,
            error.strerror,
        )
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Returns whether a process holds a lock file; False too where that cannot be found out.

    The lock is taken for a moment, so who takes it should wait a little.
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
