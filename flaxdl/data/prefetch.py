"""Prefetching of batches by worker threads or processes; both yield the same batches."""

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
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.data.watchdog import with_watchdog
from flaxdl.tracebacks import WorkerTraceback, frames_of

Batch = dict[str, np.ndarray]

_LOGGER = logging.getLogger(__name__)

# A worker process takes about 3 s to start; in that time, two threads decode almost 2,000
# photographs of 500 x 375 pixels. Decoding releases the GIL, so threads are faster on two cores
# (600 photographs per second, against 500 with processes).
_MIN_EXAMPLES_FOR_PROCESSES = 4096
_MAX_WORKERS = 16
_MAX_DEATHS = 3  # worker deaths per batch before the batch is considered the cause
_WARN_EVERY = 60.0  # seconds without a batch between warnings
_HANG_AFTER = 300.0  # seconds without a batch before worker processes are restarted


def prefetched(batches: Sequence[Batch], dataset: Dataset, start: int) -> Generator[Batch]:
    """Yields batches starting at number `start`, prefetching the next ones in the background.

    Closing the generator stops the workers. A warning is logged if no batch arrives for 60 s.
    Worker processes that die or hang are restarted without losing batches.

    Args:
        batches: sequence of batches that may be indexed in any thread or process.
        dataset: dataset that the batches are fetched from.
        start: number of the first batch.
    """
    workers = num_workers(dataset)
    if workers == 0:
        return _by_threads(batches, dataset, start)
    return _by_processes(batches, dataset, start, workers)


def num_workers(dataset: Dataset) -> int:
    """Returns the number of worker processes; 0 unless there are many files and cores."""
    cores = os.cpu_count() or 1
    worth_it = dataset.decodes_files and len(dataset) >= _MIN_EXAMPLES_FOR_PROCESSES and cores > 2
    return min(_MAX_WORKERS, cores) if worth_it else 0


def _by_threads(batches: Sequence[Batch], dataset: Dataset, start: int) -> Generator[Batch]:
    import grain

    # Files are read and decoded in parallel; for data in memory, more than one thread is slower.
    threads = 1 if dataset.in_memory else min(_MAX_WORKERS, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    with closing(iter(grain.MapDataset.source(batches)[start:].to_iter_dataset(options))) as them:
        yield from with_watchdog(them, warn_every=_WARN_EVERY)


def _by_processes(
    batches: Sequence[Batch], dataset: Dataset, start: int, workers: int
) -> Generator[Batch]:
    number, deaths = start, 0
    skipped = dataset.skipped or SkippedExamples(0, "examples")
    while True:
        results = _worker_results(batches, dataset, number, workers)
        try:
            with closing(results):
                for result in results:
                    for name, reason in result.skipped.items():
                        skipped.add(name, reason)
                    if isinstance(result.batch, _Failure):
                        raise result.batch.error from result.batch.cause
                    yield result.batch
                    number, deaths = number + 1, 0
            return
        except RuntimeError as error:
            deaths += 1
            if "terminated unexpectedly" not in str(error) or deaths > _MAX_DEATHS:
                raise
            _LOGGER.warning("a data worker died; retrying batch %d: %s", number, error)


def _worker_results(
    batches: Sequence[Batch], dataset: Dataset, start: int, workers: int
) -> Generator["_WorkerResult"]:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which are not parsed elsewhere
    source = grain.MapDataset.source(_WorkerResults(batches, dataset))[start:]
    ahead = source.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    ahead = ahead.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
        worker_init_fn=_init_worker,
    )
    others = set(multiprocessing.active_children())

    def kill() -> None:
        for process in set(multiprocessing.active_children()) - others:
            process.kill()

    results = iter(ahead)
    try:
        yield from with_watchdog(
            results, warn_every=_WARN_EVERY, on_hang=kill, hang_after=_HANG_AFTER
        )
    finally:
        kill()  # safe, as workers have no state; grain would wait for a hung one
        results.close()


class _WorkerResult:
    """A batch and the files that its worker could not read.

    grain sends arrays through shared memory. Containers often have too little of it and kill
    processes that exceed it. Arrays wrapped in this class are sent through a pipe instead.
    """

    def __init__(self, batch: "Batch | _Failure", skipped: dict[str, str]):
        self.batch = batch
        self.skipped = skipped


class _Failure:
    """An error in a worker process, with its traceback (pickling alone would lose it).

    An exception that cannot be pickled is replaced by a RuntimeError with the same message.
    """

    def __init__(self, error: Exception):
        self.cause = WorkerTraceback("".join(traceback.format_exception(error)), frames_of(error))
        self.error = error.with_traceback(None)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            self.error = RuntimeError(f"{type(error).__name__}: {error}")


class _WorkerResults(Sequence[_WorkerResult]):
    """The batches, wrapped for sending between processes."""

    def __init__(self, batches: Sequence[Batch], dataset: Dataset):
        self._batches = batches
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> _WorkerResult:
        try:
            batch = self._batches[number]
        except Exception as error:
            return _WorkerResult(_Failure(error), {})
        skipped = self._dataset.skipped
        return _WorkerResult(batch, skipped.pop_reasons() if skipped else {})


def _init_worker(worker: int, workers: int) -> None:
    """Ignores signals, since the main process handles them, and exits when that process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.getLogger("absl").setLevel(logging.ERROR)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
