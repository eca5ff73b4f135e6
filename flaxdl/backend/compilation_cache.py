"""The cache of compiled programs, so that a command starts faster from its second time on."""

import logging
import os
import stat
from pathlib import Path

_LOGGER = logging.getLogger(__name__)

_SHORTEST = 0.2  # seconds of compiling that are worth a file
_LARGEST = 2 * 2**30  # bytes; what was not used for longest goes first


def keep_compiled() -> None:
    """Turns on JAX's cache of compiled programs, in a private folder of the user.

    It is `flaxdl/compiled` in `$XDG_CACHE_HOME` or `~/.cache`. What lies in it is run as machine
    code, so it is used only where it belongs to the user and nobody else can write it, or exchange
    it by writing a folder above it; where somebody can, a warning says so. A folder that the user
    has given in `JAX_COMPILATION_CACHE_DIR` is left alone, and so is an empty name there, which
    turns the cache off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = _private_folder()
    if folder is None:
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)


def _private_folder() -> Path | None:
    """The folder, made if it is missing; None where it cannot be had for the user alone."""
    if not hasattr(os, "getuid"):  # not POSIX: who can write a folder is not to be had so simply
        return None
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(root) / "flaxdl" / "compiled"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        parents = {*folder.absolute().parents, *folder.resolve().parents}  # of links, both ends
        unsafe = [parent for parent in parents if not _is_safe(parent)]
    except OSError:
        return None
    if unsafe:
        _LOGGER.warning(
            "compiled programs are not kept in %s, since others can write %s; "
            "JAX_COMPILATION_CACHE_DIR names another folder, or none if it is empty",
            folder,
            min(unsafe),
        )
        return None
    mode = stat.S_IMODE(status.st_mode)
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not mode & 0o077
    return folder if is_ours else None


def _is_safe(parent: Path) -> bool:
    """Returns whether nobody but the user and root can exchange what is in a folder."""
    status = parent.stat()
    if status.st_uid not in (0, os.getuid()):
        return False
    if status.st_mode & stat.S_ISVTX:  # as /tmp: only owners rename what is theirs
        return True
    # Many systems give each user a group of the same number, whose folders it may write.
    is_of_own_group = status.st_gid == os.getgid() == os.getuid()
    return not status.st_mode & (0o002 if is_of_own_group else 0o022)
