"""Batches of fixed shape, in an order that is a function of the seed alone.

Training batch s is the same whether the run started at step 0 or s, on one process or on many:
epoch e = s // steps_per_epoch has its own permutation, and the batch its own draws of chance.
Each process gets a contiguous share of every batch; batch sizes are those of all processes
together. A batch is a dict of arrays [B, ...] with `weight`, float32[B]: 1 for an example, 0 for
what only fills up the last evaluation batch.
"""

import os
import sys
from collections.abc import Generator, Sequence
from functools import lru_cache

import numpy as np

from flaxdl.data.dataset import Dataset
from flaxdl.data.transforms import Transform

Batch = dict[str, np.ndarray]


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of whole batches in an epoch; a rest sits out until the next shuffle.

    Raises:
        ValueError: if there is not even one.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be between 1 and the {num_examples} training examples, "
            f"got {batch_size}"
        )
    return num_examples // batch_size


def training_batches(
    dataset: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch]:
    """Yields this process's shares of the batches of steps start_step, start_step + 1, ...

    The stream has no end; closing it ends the threads that prepare batches ahead.

    Raises:
        ValueError: if the batch is larger than the dataset, or does not divide by the processes.
    """
    share = _share(batch_size, process_index, process_count)
    batches = _TrainingBatches(dataset, transform, batch_size, seed, share)
    return _prepared_ahead(batches, start_step, threads=_threads(dataset))


def evaluation_batches(
    dataset: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch]:
    """Yields this process's shares of all examples, in order, each exactly once with weight 1.

    Raises:
        ValueError: if the batch size does not divide by the processes.
    """
    share = _share(batch_size, process_index, process_count)
    batches = _EvaluationBatches(dataset, transform, batch_size, share)
    return _prepared_ahead(batches, 0, threads=_threads(dataset))


class _TrainingBatches(Sequence[Batch]):
    """Training batches by step."""

    def __init__(
        self, dataset: Dataset, transform: Transform, batch_size: int, seed: int, share: slice
    ):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._seed = seed
        self._share = share
        self._steps_per_epoch = steps_per_epoch(len(dataset), batch_size)
        self._order = lru_cache(maxsize=2)(self._order)  # two, for batches ahead of an epoch's end

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        epoch, step_in_epoch = divmod(step, self._steps_per_epoch)
        start = step_in_epoch * self._batch_size
        indices = self._order(epoch)[start : start + self._batch_size][self._share]
        batch = self._dataset.gather(indices)
        # NumPy reads a short seed as one that ends in zeros, hence the last number: 0 for orders,
        # 1 for draws, 2 for what source.py holds out.
        rng = np.random.default_rng((self._seed, step, 1))
        draws = self._transform.draw(rng, self._batch_size)
        batch = self._transform.prepare(
            batch, {name: draw[self._share] for name, draw in draws.items()}
        )
        return batch | {"weight": np.ones(len(indices), np.float32)}

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch, 0)).permutation(len(self._dataset))


class _EvaluationBatches(Sequence[Batch]):
    """Evaluation batches by number, the last one filled up with its last example."""

    def __init__(self, dataset: Dataset, transform: Transform, batch_size: int, share: slice):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._share = share

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        start = number * self._batch_size
        indices = np.arange(start, start + self._batch_size)[self._share]
        batch = self._dataset.gather(np.minimum(indices, len(self._dataset) - 1))
        batch = self._transform.prepare(batch, draws={})
        return batch | {"weight": (indices < len(self._dataset)).astype(np.float32)}


def _share(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of each batch that belong to a process."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"{batch_size=} must be a multiple of {process_count=}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"{process_index=} must be in 0..{process_count - 1}")
    rows = batch_size // process_count
    return slice(process_index * rows, (process_index + 1) * rows)


def _threads(dataset: Dataset) -> int:
    """How many batches to prepare at once: files are waited for and decoded in parallel."""
    return 1 if dataset.in_memory else min(16, os.cpu_count() or 1)


def _prepared_ahead(batches: Sequence[Batch], start: int, *, threads: int) -> Generator[Batch]:
    """Yields batches from number `start` on, a few of them prepared in the background."""
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = iter(grain.MapDataset.source(batches)[start:].to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
