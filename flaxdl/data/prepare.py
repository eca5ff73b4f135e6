"""Finding and preparing TFDS datasets: without TensorFlow, by one process at a time, in silence."""

import contextlib
import importlib
import io
import logging
import re
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from flaxdl.checks import did_you_mean
from flaxdl.errors import UserError
from flaxdl.filesystem.locks import locked
from flaxdl.filesystem.paths import local_path

_LOGGER = logging.getLogger(__name__)
_ONE_AT_A_TIME = threading.RLock()


def open_builder(name: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder of a dataset, prepared to be read.

    Args:
        name: as TFDS takes it, `name[/config][:version]`.
        data_dir: where datasets are kept; None is TFDS's own place.

    Raises:
        UserError: if there is no such dataset, with the nearest name, or if it cannot be
            prepared here, with what to run instead.
    """
    data_dir = None if data_dir is None else str(local_path(data_dir))
    with quiet():
        builder = _find_builder(name, data_dir)
        if builder.is_prepared():
            return builder
    _prepare(name, builder)
    with quiet():  # anew, since another process may have done the work
        return _find_builder(name, data_dir)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from writing progress bars and warnings, which go to all three places.

    Other threads that run already are heard as before; a thread that wants quiet too waits, since
    it would put back the streams of this one.
    """
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    logger = logging.getLogger("absl")

    def is_heard(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.thread in others

    with (
        _ONE_AT_A_TIME,
        contextlib.redirect_stdout(_StreamOfOthers(sys.stdout, others)),
        contextlib.redirect_stderr(_StreamOfOthers(sys.stderr, others)),
    ):
        logger.addFilter(is_heard)
        try:
            yield
        finally:
            logger.removeFilter(is_heard)


class _StreamOfOthers(io.TextIOBase):
    """Passes on what some threads write, and drops the rest."""

    def __init__(self, stream: TextIO | None, threads: Collection[int | None]):
        self._stream = stream
        self._threads = threads

    def write(self, text: str, /) -> int:
        """Writes or drops a text."""
        if self._stream is not None and threading.get_ident() in self._threads:
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, for those who may write."""
        if self._stream is not None and threading.get_ident() in self._threads:
            self._stream.flush()


def _find_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    from flaxdl.data import embedded

    if re.split("[/:]", name)[0] not in embedded.NAMES:
        # TFDS's own search ends at the first of its packages that needs TensorFlow, before GLUE's.
        for package in ("image", "structured", "text", "translation"):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{package}")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        hint = did_you_mean(re.split("[/:]", name)[0], known)
        raise UserError(f"no TFDS dataset is called {name!r}{hint}") from None
    except (ValueError, AssertionError) as error:  # unknown configs, versions, malformed names
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"TFDS cannot open {name!r}: {reason}") from None


def _prepare(name: str, builder: Any) -> None:
    """Prepares the dataset, unless another process does so first; then this one waits for it."""
    import tensorflow_datasets as tfds

    folder = Path(builder.data_path)
    # Written beside its place and renamed when complete; what has no dataset_info.json is redone.
    config = tfds.download.DownloadConfig(
        try_download_gcs=False, download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / f".{folder.name}.lock"):
            with quiet():
                if builder.is_prepared():
                    return
            _LOGGER.info("preparing %s in %s", name, folder)
            start = time.perf_counter()
            with quiet():
                builder.download_and_prepare(download_config=config, file_format="array_record")
            metadata = dict(builder.info.metadata or {})  # such as a hash of the content
            _LOGGER.info("prepared %s in %.1f s %s", name, time.perf_counter() - start, metadata)
    except Exception as error:
        raise UserError(_how_to_prepare(name, builder, error)) from error


def _how_to_prepare(name: str, builder: Any, error: BaseException) -> str:
    missing = _missing_module(error)
    if missing not in (None, "tensorflow"):
        return without_module(name, error)
    reason = f"it needs {missing}" if missing else f"{type(error).__name__}: {str(error).strip()}"
    return (
        f"{name} cannot be prepared here: {reason}. Prepare it once in another environment, with "
        f"`pip install tensorflow tensorflow-datasets` and `tfds build {name} "
        f"--file_format=array_record --data_dir={builder.data_dir_root}`; a folder that was "
        f"prepared elsewhere can be copied to {builder.data_path}"
    )


def without_module(name: str, error: BaseException) -> str:
    """Says which Python module a dataset cannot be read without, and what to do.

    Args:
        name: the dataset.
        error: an ImportError, or what it led to.
    """
    missing = _missing_module(error)
    if missing == "array_record":
        return (
            f"{name} cannot be read without the Python module array_record, which reads the files "
            "of TFDS: `pip install array-record`. Where there is none, as for Windows, run in WSL, "
            "or use Arrays, ImageFolder or TextTable, which do without"
        )
    return f"{name} cannot be read without the Python module {missing or error}: install it"


def _missing_module(error: BaseException | None) -> str | None:
    """The module whose absence was at the root of an error."""
    while error is not None:
        if isinstance(error, ImportError) and error.name:
            return error.name.split(".")[0]
        error = error.__cause__ or error.__context__
    return None
