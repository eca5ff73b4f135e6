"""Batches prepared ahead of their use, by threads or by processes: the same ones either way."""

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np

from flaxdl.data.dataset import Dataset
from flaxdl.data.unreadable import Unreadable
from flaxdl.data.watch import watched
from flaxdl.tracebacks import WorkerTraceback, frames_of

Batch = dict[str, np.ndarray]

_LOGGER = logging.getLogger(__name__)

# A process takes about three seconds to start and import what it needs, in which two threads
# decode almost 2,000 photographs of 500 x 375 pixels. Decoding runs beside Python, so that on two
# cores threads are the faster (600 a second, and 500 by processes).
_WORTH_PROCESSES = 4096  # examples
_MOST_WORKERS = 16
_MOST_DEATHS = 3  # of workers over one batch, which then is to blame
_REPORT_AFTER = 60.0  # seconds without a batch, and every so often from then on
_HUNG_AFTER = 300.0  # seconds without a batch, after which processes are started anew


def prepared_ahead(batches: Sequence[Batch], dataset: Dataset, start: int) -> Generator[Batch]:
    """Yields batches from number `start` on, a few of them prepared in the background.

    Closing the generator ends what works for it. Where none comes for long a warning says so.
    Processes that die or hang are started anew, and nothing is lost by it.

    Args:
        batches: batches by number; what prepares them may be called in any thread or process.
        dataset: where their examples come from.
        start: number of the first.
    """
    workers = num_workers(dataset)
    if workers == 0:
        return _by_threads(batches, dataset, start)
    return _by_processes(batches, dataset, start, workers)


def num_workers(dataset: Dataset) -> int:
    """How many processes read a dataset: none unless it has many files to decode."""
    cores = os.cpu_count() or 1
    worth_it = dataset.decodes_files and len(dataset) >= _WORTH_PROCESSES and cores > 2
    return min(_MOST_WORKERS, cores) if worth_it else 0


def _by_threads(batches: Sequence[Batch], dataset: Dataset, start: int) -> Generator[Batch]:
    import grain

    # Files are waited for and decoded in parallel; more than one thread only slows memory.
    threads = 1 if dataset.in_memory else min(_MOST_WORKERS, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    with closing(iter(grain.MapDataset.source(batches)[start:].to_iter_dataset(options))) as them:
        yield from watched(them, every=_REPORT_AFTER)


def _by_processes(
    batches: Sequence[Batch], dataset: Dataset, start: int, workers: int
) -> Generator[Batch]:
    number, deaths = start, 0
    unreadable = dataset.unreadable or Unreadable(0, "examples")
    while True:
        parcels = _parcels(batches, dataset, number, workers)
        try:
            with closing(parcels):
                for parcel in parcels:
                    for name, reason in parcel.unreadable.items():
                        unreadable.add(name, reason)
                    if isinstance(parcel.batch, _Failure):
                        raise parcel.batch.error from parcel.batch.cause
                    yield parcel.batch
                    number, deaths = number + 1, 0
            return
        except RuntimeError as error:
            deaths += 1
            if "terminated unexpectedly" not in str(error) or deaths > _MOST_DEATHS:
                raise
            _LOGGER.warning("a data worker died; batch %d is prepared anew: %s", number, error)


def _parcels(
    batches: Sequence[Batch], dataset: Dataset, start: int, workers: int
) -> Generator["_Parcel"]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its own, which nobody else would parse
    source = grain.MapDataset.source(_Parcels(batches, dataset))[start:]
    ahead = source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    ahead = ahead.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=_begin_worker,
    )
    others = set(multiprocessing.active_children())

    def kill() -> None:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()

    parcels = iter(ahead)
    try:
        yield from watched(parcels, every=_REPORT_AFTER, hung=kill, after=_HUNG_AFTER)
    finally:
        kill()  # they hold nothing that could be lost, and grain would wait for one that hangs
        parcels.close()


class _Parcel:
    """A batch, and the files that its worker could not read.

    grain sends arrays through shared memory, of which containers often have too little, and what
    fills it is killed. It does not look into this, and sends it through a pipe.
    """

    def __init__(self, batch: "Batch | _Failure", unreadable: dict[str, str]):
        self.batch = batch
        self.unreadable = unreadable


class _Failure:
    """An error in a worker process, with its traceback, which would be lost on the way.

    An exception that cannot be copied to another process becomes a RuntimeError of the same text.
    """

    def __init__(self, error: Exception):
        self.cause = WorkerTraceback("".join(traceback.format_exception(error)), frames_of(error))
        self.error = error.with_traceback(None)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            self.error = RuntimeError(f"{type(error).__name__}: {error}")


class _Parcels(Sequence[_Parcel]):
    """The batches, as they travel between processes."""

    def __init__(self, batches: Sequence[Batch], dataset: Dataset):
        self._batches = batches
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> _Parcel:
        try:
            batch = self._batches[number]
        except Exception as error:
            return _Parcel(_Failure(error), {})
        unreadable = self._dataset.unreadable
        return _Parcel(batch, unreadable.taken() if unreadable else {})


def _begin_worker(worker: int, workers: int) -> None:
    """Leaves it to the first process to be interrupted, and ends with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.getLogger("absl").setLevel(logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
