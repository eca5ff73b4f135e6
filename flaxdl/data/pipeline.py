"""Batches of fixed shape, in an order that is a function of the seed alone.

Training batch s is the same whether the run started at step 0 or s, on one process or on many:
epoch e = s // steps_per_epoch has its own permutation, and the batch its own draws of chance.
Each process prepares only the rows of a batch that it is asked for; batch sizes are those of all
processes together. A batch is a dict of arrays [B, ...] with `weight`, float32[B]: 1 for an
example, 0 for what only fills up the last evaluation batch or stands in for what cannot be read.

Where examples have lengths, those of a batch are of similar length, and batches of one run may
differ in shape; every process has the same shapes at the same step.
"""

import sys
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flaxdl.data.dataset import Dataset
from flaxdl.data.prefetch import Batch, prepared_ahead
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError

_WINDOW = 50  # batches, within which examples are sorted by length


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of whole batches in an epoch; a rest sits out until the next shuffle.

    Raises:
        UserError: if there is not even one.
    """
    if not 1 <= batch_size <= num_examples:
        raise UserError(
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
    rows: np.ndarray | None = None,
    repeat: int | None = None,
) -> Generator[Batch]:
    """Yields the batches of steps start_step, start_step + 1, ..., or `rows` (int[n]) of them.

    The stream has no end; closing it ends the threads or processes that prepare batches ahead.
    With `repeat` it is the batches of the first so many steps, over and over.

    Raises:
        UserError: if the batch is larger than the dataset.
    """
    rows = np.arange(batch_size) if rows is None else rows
    batches = _TrainingBatches(dataset, transform, batch_size, seed, rows, repeat)
    return prepared_ahead(batches, dataset, start_step)


def evaluation_batches(
    dataset: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> Generator[Batch]:
    """Yields batches of all examples, each exactly once with weight 1, or `rows` of the batches.

    They come in the order of the dataset, or by length where they have lengths.

    Raises:
        UserError: if a batch would be empty.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    rows = np.arange(batch_size) if rows is None else rows
    batches = _EvaluationBatches(dataset, transform, batch_size, rows)
    return prepared_ahead(batches, dataset, 0)


class _TrainingBatches(Sequence[Batch]):
    """Training batches by step."""

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        batch_size: int,
        seed: int,
        rows: np.ndarray,
        repeat: int | None,
    ):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._seed = seed
        self._rows = rows
        self._repeat = repeat or sys.maxsize
        self._steps_per_epoch = steps_per_epoch(len(dataset), batch_size)
        self._lengths = dataset.lengths()
        self._remember()

    def _remember(self) -> None:
        self._order = lru_cache(maxsize=2)(self._shuffled)  # for batches ahead of an epoch's end

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> Batch:
        step %= self._repeat
        epoch, step_in_epoch = divmod(step, self._steps_per_epoch)
        start = step_in_epoch * self._batch_size
        indices = self._order(epoch)[start : start + self._batch_size]
        batch = self._dataset.batch(indices, self._rows)
        # NumPy reads a short seed as one that ends in zeros, hence the last number: 0 for orders,
        # 1 for draws, 2 for what source.py holds out.
        rng = np.random.default_rng((self._seed, step, 1))
        draws = self._transform.draw(rng, self._batch_size)
        batch = self._transform.prepare(
            batch, {name: draw[self._rows] for name, draw in draws.items()}
        )
        return _weighted(batch, np.ones(len(indices[self._rows])))

    def _shuffled(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, epoch, 0))
        order = rng.permutation(len(self._dataset))
        if self._lengths is None:
            return order
        order = order[: self._steps_per_epoch * self._batch_size]
        window = _WINDOW * self._batch_size
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([_by_length(w, self._lengths) for w in windows])
        return rng.permutation(order.reshape(-1, self._batch_size)).ravel()


class _EvaluationBatches(Sequence[Batch]):
    """Evaluation batches by number, the last one filled up with its last example."""

    def __init__(self, dataset: Dataset, transform: Transform, batch_size: int, rows: np.ndarray):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._rows = rows
        lengths = dataset.lengths()
        everything = np.arange(len(dataset))
        self._order = everything if lengths is None else _by_length(everything, lengths)

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        start, last = number * self._batch_size, len(self._dataset) - 1
        places = np.arange(start, start + self._batch_size)
        batch = self._dataset.batch(self._order[np.minimum(places, last)], self._rows)
        batch = self._transform.prepare(batch, draws={})
        return _weighted(batch, places[self._rows] <= last)


def _weighted(batch: Batch, weight: np.ndarray) -> Batch:
    """Sets the weights, on top of those of the dataset, if it has any."""
    batch = finite_without_weight(batch)
    weight = weight.astype(np.float32) * batch.get("weight", np.float32(1))
    return batch | {"weight": weight.astype(np.float32)}


def finite_without_weight(batch: Batch) -> Batch:
    """Makes inputs that do not count finite, since zero times NaN is NaN in the gradients.

    Args:
        batch: examples; `weight` [B] is 0 for those that do not count.
    """
    if "weight" not in batch:
        return batch
    inputs, is_without = batch["inputs"], batch["weight"] == 0
    if inputs.dtype.kind != "f" or not is_without.any():
        return batch
    inputs = inputs.copy()
    inputs[is_without] = np.nan_to_num(inputs[is_without], posinf=0, neginf=0)
    return batch | {"inputs": inputs}


def _by_length(indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return indices[np.argsort(lengths[indices], kind="stable")]
