"""Input pipeline: batches of fixed shape in an order that depends only on the seed.

Training batch s is the same whether the run started at step 0 or s, with one process or many: epoch
e = s // steps_per_epoch has its own permutation, and each batch its own random numbers. Batch sizes
are global; each process prepares only its rows. A batch is a dict of arrays [B, ...] with `weight`,
float32[B]: 0 for padding of the last evaluation batch and for replacements of unreadable examples,
otherwise 1 or, in training, the weight of the example.

With repeated augmentation, a batch has several copies of each example, which differ in their random
numbers. An epoch has the same number of steps, and therefore fewer different examples.
With balanced sampling, an epoch also has the same number of steps, and shows all classes equally
often.

The weights of examples, if a dataset has any, count in training only: in evaluation, all examples
of weight above 0 count equally.

If a dataset is read in groups, such as the row groups of Parquet files, an epoch shuffles the
groups, and the examples within windows of 16 groups.

If a dataset has lengths, batches are made of examples of similar length (length bucketing). Their
shapes may then differ from step to step, but are the same on all processes.
"""

import sys
from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flaxdl.data.balanced_sampling import balanced_order
from flaxdl.data.dataset import Dataset
from flaxdl.data.prefetch import Batch, prefetched
from flaxdl.data.shuffling import windowed_order
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError

_WINDOW = 50  # number of batches whose examples are sorted by length


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch; the remaining examples are dropped.

    Raises:
        UserError: if there is no full batch.
    """
    if not 1 <= batch_size <= num_examples:
        raise UserError(
            f"batch_size must be between 1 and {num_examples}, the number of training examples, "
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
    copies: int = 1,
    classes: np.ndarray | None = None,
) -> Generator[Batch]:
    """Yields the training batches from `start_step` on, or `rows` (int[n]) of each.

    The generator is infinite; closing it stops the worker threads or processes. With `repeat`, it
    cycles through the batches of the first `repeat` steps. With `copies`, a batch has
    `batch_size / copies` examples, each that many times, augmented independently. With `classes`,
    the class of each example, int[N], all classes are drawn equally often in each epoch.

    Raises:
        UserError: if the batch is larger than the dataset, or `copies` does not divide it.
    """
    if copies < 1 or batch_size % copies:
        raise UserError(f"copies must divide batch_size {batch_size}, got {copies}")
    rows = np.arange(batch_size) if rows is None else rows
    batches = _TrainingBatches(dataset, transform, batch_size, seed, rows, repeat, copies, classes)
    return prefetched(batches, dataset, start_step)


def evaluation_batches(
    dataset: Dataset,
    transform: Transform,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
) -> Generator[Batch]:
    """Yields batches with each example once, at weight 1 or 0, or `rows` (int[n]) of each batch.

    They are in the order of the dataset, or sorted by length if it has lengths.

    Raises:
        UserError: if a batch would be empty.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    rows = np.arange(batch_size) if rows is None else rows
    batches = _EvaluationBatches(dataset, transform, batch_size, rows)
    return prefetched(batches, dataset, 0)


def evaluation_order(dataset: Dataset) -> np.ndarray:
    """Returns the indices of all examples in the order of `evaluation_batches`, int[N]."""
    lengths = dataset.lengths()
    everything = np.arange(len(dataset))
    return everything if lengths is None else _by_length(everything, lengths)


class _TrainingBatches(Sequence[Batch]):
    """Sequence of training batches, indexed by step."""

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        batch_size: int,
        seed: int,
        rows: np.ndarray,
        repeat: int | None,
        copies: int,
        classes: np.ndarray | None,
    ):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._seed = seed
        self._rows = rows
        self._repeat = repeat or sys.maxsize
        self._distinct = batch_size // copies
        self._examples, self._places = rows, None
        if copies > 1:
            # Copies are not adjacent, but on different devices, as with torchvision's RASampler;
            # mixup pairs adjacent rows. Copies within a process are read once.
            self._examples, self._places = np.unique(rows % self._distinct, return_inverse=True)
        self._steps_per_epoch = steps_per_epoch(len(dataset), batch_size)
        self._lengths = dataset.lengths()
        self._groups = dataset.read_groups()
        self._classes = classes
        self._remember()

    def _remember(self) -> None:
        # Two epochs, since prefetching crosses the end of an epoch.
        self._order = lru_cache(maxsize=2)(self._shuffled)

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
        start = step_in_epoch * self._distinct
        indices = self._order(epoch)[start : start + self._distinct]
        batch = self._dataset.batch(indices, self._examples)
        if self._places is not None:
            batch = {name: array[self._places] for name, array in batch.items()}
        # NumPy pads short seeds with zeros, so the last number separates the streams: 0 for
        # permutations, 1 for draws, 2 and 3 for the splits in source.py.
        rng = np.random.default_rng((self._seed, step, 1))
        draws = self._transform.draw(rng, self._batch_size)
        batch = self._transform.prepare(
            batch, {name: draw[self._rows] for name, draw in draws.items()}
        )
        return _weighted(batch, np.ones(len(self._rows)))

    def _shuffled(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self._seed, epoch, 0))
        count = self._steps_per_epoch * self._distinct
        if self._classes is not None:
            order = balanced_order(self._classes, count, rng)
        elif self._groups is not None:
            order = windowed_order(self._groups, rng)[:count]
        else:
            order = rng.permutation(len(self._dataset))[:count]
        if self._lengths is None:
            return order
        window = _WINDOW * self._distinct
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([_by_length(w, self._lengths) for w in windows])
        return rng.permutation(order.reshape(-1, self._distinct)).ravel()


class _EvaluationBatches(Sequence[Batch]):
    """Sequence of evaluation batches; the last one is padded with its last example."""

    def __init__(self, dataset: Dataset, transform: Transform, batch_size: int, rows: np.ndarray):
        self._dataset = dataset
        self._transform = transform
        self._batch_size = batch_size
        self._rows = rows
        self._order = evaluation_order(dataset)

    def __len__(self) -> int:
        return -(-len(self._dataset) // self._batch_size)

    def __getitem__(self, number: int) -> Batch:
        start, last = number * self._batch_size, len(self._dataset) - 1
        places = np.arange(start, start + self._batch_size)
        batch = self._dataset.batch(self._order[np.minimum(places, last)], self._rows)
        batch = self._transform.prepare(batch, draws={})
        batch = _weighted(batch, places[self._rows] <= last)
        return batch | {"weight": (batch["weight"] > 0).astype(np.float32)}


def _weighted(batch: Batch, weight: np.ndarray) -> Batch:
    """Multiplies the weights of the dataset, if it has any, by `weight`."""
    batch = finite_without_weight(batch)
    weight = weight.astype(np.float32) * batch.get("weight", np.float32(1))
    return batch | {"weight": weight.astype(np.float32)}


def finite_without_weight(batch: Batch) -> Batch:
    """Makes inputs of weight 0 finite, since zero times NaN is NaN in the gradients.

    Args:
        batch: examples, with or without `weight` [B].
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
