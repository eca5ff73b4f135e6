"""Lookup and preparation of TFDS datasets, without TensorFlow and without its output."""

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
    """Returns the TFDS builder of a dataset, preparing the dataset if necessary.

    Args:
        name: TFDS name, `name[/config][:version]`.
        data_dir: directory of the datasets; None for the default of TFDS.

    Raises:
        UserError: if there is no such dataset, with the nearest name, or if it cannot be prepared
            here, with the commands to prepare it elsewhere.
    """
    data_dir = None if data_dir is None else str(local_path(data_dir))
    with quiet():
        builder = _find_builder(name, data_dir)
        if builder.is_prepared():
            return builder
    _prepare(name, builder)
    with quiet():  # opened again, since another process may have prepared it
        return _find_builder(name, data_dir)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the progress bars and warnings of TFDS on stdout, stderr and the absl log.

    Output of other running threads is passed through. Only one thread can enter at a time, since
    each replaces and restores the streams.
    """
    others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    logger = logging.getLogger("absl")

    def is_heard(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.thread in others

    with (
        _ONE_AT_A_TIME,
        contextlib.redirect_stdout(_ThreadFilter(sys.stdout, others)),
        contextlib.redirect_stderr(_ThreadFilter(sys.stderr, others)),
    ):
        logger.addFilter(is_heard)
        try:
            yield
        finally:
            logger.removeFilter(is_heard)


class _ThreadFilter(io.TextIOBase):
    """Stream that passes on the output of some threads and drops the rest."""

    def __init__(self, stream: TextIO | None, threads: Collection[int | None]):
        self._stream = stream
        self._threads = threads

    def write(self, text: str, /) -> int:
        """Writes or drops a text."""
        if self._stream is not None and threading.get_ident() in self._threads:
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, for the threads that may write."""
        if self._stream is not None and threading.get_ident() in self._threads:
            self._stream.flush()


def _find_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    from flaxdl.data import embedded

    if re.split("[/:]", name)[0] not in embedded.NAMES:
        # TFDS stops importing at its first package that needs TensorFlow, before that of GLUE.
        for package in ("image", "structured", "text", "translation"):
            with contextlib.suppress(ImportError):
                importlib.import_module(f"tensorflow_datasets.{package}")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        hint = did_you_mean(re.split("[/:]", name)[0], known)
        raise UserError(f"no TFDS dataset is named {name!r}{hint}") from None
    except (ValueError, AssertionError) as error:  # unknown configs, versions, malformed names
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"TFDS cannot open {name!r}: {reason}") from None


def _prepare(name: str, builder: Any) -> None:
    """Prepares the dataset; if another process is doing so, waits for it instead."""
    import tensorflow_datasets as tfds

    folder = Path(builder.data_path)
    # TFDS writes to a temporary folder and renames it when complete; it prepares folders without
    # dataset_info.json again.
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
            metadata = dict(builder.info.metadata or {})  # e.g. a hash of the content
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
    """Describes the Python module that is missing to read a dataset, with a remedy.

    Args:
        name: the dataset.
        error: an ImportError, or an error caused by one.
    """
    missing = _missing_module(error)
    if missing == "array_record":
        return (
            f"{name} cannot be read without the Python module array_record: run `pip install "
            "array-record`. On platforms without it, such as Windows, use WSL, or the data sources "
            "Arrays, ImageFolder or TextTable, which do not need it"
        )
    return f"{name} cannot be read without the Python module {missing or error}; install it"


def _missing_module(error: BaseException | None) -> str | None:
    """Returns the name of the module whose import failed, from a chain of errors."""
    while error is not None:
        if isinstance(error, ImportError) and error.name:
            return error.name.split(".")[0]
        error = error.__cause__ or error.__context__
    return None
