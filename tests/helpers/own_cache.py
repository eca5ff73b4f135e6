"""A compilation cache for processes that are killed."""

import atexit
import shutil
import tempfile
from functools import cache


@cache
def own_cache():
    """A folder of this process's own: JAX may leave half an entry in it, which would stay."""
    folder = tempfile.mkdtemp(prefix="flaxdl-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
