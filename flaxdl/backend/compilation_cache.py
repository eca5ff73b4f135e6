"""JAX's persistent compilation cache, for a faster start of repeated commands."""

import logging
import os
import stat
from pathlib import Path

_LOGGER = logging.getLogger(__name__)

_MIN_COMPILE_TIME = 0.2  # seconds
_MAX_SIZE = 2 * 2**30  # bytes; the least recently used entries are evicted


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache, in a private folder of the user.

    The folder is `flaxdl/compiled` in `$XDG_CACHE_HOME` or `~/.cache`. Its content is executed as
    machine code, so the cache is used only if the folder belongs to the user and nobody else can
    write to it, or replace it by writing to a parent folder. If others can write to a parent
    folder, a warning is logged.

    If `JAX_COMPILATION_CACHE_DIR` is set, nothing is changed; set it to an empty string to turn the
    cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = _private_folder()
    if folder is None:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_SIZE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_TIME)


def _private_folder() -> Path | None:
    """Creates and returns the cache folder, or returns None if it is not private to the user."""
    if not hasattr(os, "getuid"):  # not POSIX: folder permissions are harder to check
        return None
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(root) / "flaxdl" / "compiled"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # Parents of a symbolic link and of its target.
        parents = {*folder.absolute().parents, *folder.resolve().parents}
        unsafe = [parent for parent in parents if not _is_safe(parent)]
    except OSError:
        return None
    if unsafe:
        _LOGGER.warning(
            "the compilation cache %s is not used, since other users can write to %s; set "
            "JAX_COMPILATION_CACHE_DIR to another folder, or to an empty string for no cache",
            folder,
            min(unsafe),
        )
        return None
    mode = stat.S_IMODE(status.st_mode)
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not mode & 0o077
    return folder if is_ours else None


def _is_safe(parent: Path) -> bool:
    """Returns True if only the user and root can replace the content of a folder."""
    status = parent.stat()
    if status.st_uid not in (0, os.getuid()):
        return False
    if status.st_mode & stat.S_ISVTX:  # sticky, as /tmp: files can be renamed only by their owners
        return True
    # Many systems create a group with the same id for each user, which may safely write.
    is_of_own_group = status.st_gid == os.getgid() == os.getuid()
    return not status.st_mode & (0o002 if is_of_own_group else 0o022)
