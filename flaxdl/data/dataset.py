"""Datasets: examples with random access, fetched many at a time.

An example is a row of named arrays. `inputs` is what the model takes, `label` what it shall
answer; any other name is handed to the model by keyword. N counts examples, n those asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.unreadable import Unreadable
from flaxdl.errors import UserError

_SAMPLED_VALUES = 2**22
_SAMPLED_EXAMPLES = 256
_SAMPLED_FILES = 16  # each takes up to 50 ms to decode


class Dataset(ABC):
    """Examples 0 to N - 1, fetched by arrays of indices."""

    in_memory = False
    """Whether fetching is mere copying."""
    decodes_files = False
    """Whether fetching keeps a processor busy, so that other processes may do it."""
    unreadable: Unreadable | None = None
    """Where examples that cannot be read are counted; they get weight 0 in `weight`."""
    class_fault: str | None = None
    """Why a classifier cannot learn the labels, if that is known beforehand."""
    examples_in_0_1_0: int | None = None
    """How many examples flaxdl 0.1.0, which recorded no numbers of them, would have found, where
    its rules gave others."""

    @abstractmethod
    def __len__(self) -> int:
        """N, the number of examples."""

    @abstractmethod
    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches the examples at `indices` (int[n]) as one new array [n, ...] per name."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Fetches all examples, which must fit into memory."""
        return self.gather(np.arange(len(self)))

    def labels(self) -> np.ndarray | None:
        """All labels [N], where they are known without reading every example."""
        return self.arrays().get("label") if self.in_memory else None

    @property
    def fingerprint(self) -> str | None:
        """A short text that other examples would not have; None if that is not known cheaply."""
        return None

    def name_of(self, field: str) -> str:
        """The user's own name of a field, for messages."""
        return field

    def lengths(self) -> np.ndarray | None:
        """How long examples are, int[N], where those of a batch shall be of similar length."""
        return None

    def batch(self, indices: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches `rows` (int[n]) of a batch, whose shapes may depend on all its `indices`."""
        return self.gather(indices[rows])


class ArrayDataset(Dataset):
    """Arrays in memory, one row per example.

    Args:
        arrays: by the name of the field.
        names: field → the user's own name of it, where that is another.

    Raises:
        UserError: if the arrays differ in their number of rows.
    """

    in_memory = True

    def __init__(self, arrays: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None):
        if len({np.shape(array)[:1] for array in arrays.values()} | {()}) != 2:
            shapes = ", ".join(f"{name} {list(np.shape(a))}" for name, a in arrays.items())
            raise UserError(f"all arrays must have one row per example, got shapes {shapes}")
        self._arrays = dict(arrays)
        self._names = dict(names or {})

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    @cached_property
    def fingerprint(self) -> str | None:
        """Covers the values of all arrays, or a sample of large ones."""
        return fingerprint.of_arrays(self._arrays)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches rows; millions a second for small images."""
        return {name: array[indices] for name, array in self._arrays.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays themselves, not copied."""
        return dict(self._arrays)

    def name_of(self, field: str) -> str:
        """The user's own name of a field, for messages."""
        return self._names.get(field, field)


class Records(Protocol):
    """Records read from files, many at a time, as a TFDS data source reads them."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[int], /) -> Sequence[Mapping[str, Any]]: ...


class RecordDataset(Dataset):
    """Records that stay in their files and are read and decoded when asked for.

    Args:
        records: where the records are.
        fields: name in the batch -> name in the record, as in `{"inputs": "image"}`.
        num_classes: labels must be below it; None where labels are no classes.
        sizes_differ: the inputs have different shapes, and come as an array of arrays.
        where: name of the records in error messages, as in `split 'train' of mnist`.
        version: text that other records would not have; None if that is unknown.
    """

    decodes_files = True

    def __init__(
        self,
        records: Records,
        fields: Mapping[str, str],
        *,
        num_classes: int | None = None,
        sizes_differ: bool = False,
        where: str = "the records",
        version: str | None = None,
    ):
        self._records = records
        self._fields = dict(fields)
        self._num_classes = num_classes
        self._sizes_differ = sizes_differ
        self._where = where
        self._version = version

    def __len__(self) -> int:
        return len(self._records)

    @cached_property
    def fingerprint(self) -> str | None:
        """Covers the version that the records are known by, and which fields are read."""
        if self._version is None:
            return None
        return fingerprint.of_texts([self._version, str(sorted(self._fields.items()))])

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Reads, decodes and stacks the records.

        Raises:
            UserError: if the records differ in shape, or a label is out of range.
        """
        records = self._records.__getitems__([int(index) for index in indices])
        batch = {
            name: rows([record[field] for record in records])
            if self._sizes_differ and name == "inputs"
            else self._stack(field, [record[field] for record in records])
            for name, field in self._fields.items()
        }
        if "label" in batch and self._num_classes is not None:
            batch["label"] = class_labels(
                batch["label"], self._num_classes, where=self._where, numbers=indices
            )
        return batch

    def _stack(self, field: str, values: Sequence[Any]) -> np.ndarray:
        if values and isinstance(values[0], bytes | str):
            texts = [v.decode("utf-8") if isinstance(v, bytes) else v for v in values]
            return np.array(texts, dtype=object)
        shapes = sorted({np.shape(value) for value in values})
        if len(shapes) > 1:
            raise UserError(
                f"examples must have one shape, got {field} of shapes "
                f"{' and '.join(str(list(shape)) for shape in shapes[:3])} in {self._where}"
            )
        return np.stack(values) if values else np.zeros(0)


def sample(dataset: Dataset) -> dict[str, np.ndarray]:
    """Fetches evenly spaced examples: at most 256, and fewer if they are large or files."""
    if dataset.in_memory:
        size = max(dataset.gather(np.arange(1))["inputs"].size, 1)
        count = min(max(_SAMPLED_VALUES // size, 1), _SAMPLED_EXAMPLES, len(dataset))
    else:
        count = min(_SAMPLED_FILES, len(dataset))
    return dataset.gather(np.linspace(0, len(dataset) - 1, count).astype(np.int64))


def rows(values: Sequence[np.ndarray]) -> np.ndarray:
    """The arrays as they are, in an array of objects; `np.array` would stack equal shapes."""
    array = np.empty(len(values), object)
    for number, value in enumerate(values):
        array[number] = value
    return array


class Subset(Dataset):
    """The examples of `dataset` at `indices`, in that order."""

    def __init__(self, dataset: Dataset, indices: np.ndarray):
        self.in_memory = dataset.in_memory
        self.decodes_files = dataset.decodes_files
        self.unreadable = dataset.unreadable
        self.class_fault = dataset.class_fault
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches examples of the subset."""
        return self._dataset.gather(self._indices[indices])

    def labels(self) -> np.ndarray | None:
        """The labels of the subset, where those of the whole are known."""
        labels = self._dataset.labels()
        return None if labels is None else labels[self._indices]

    @cached_property
    def fingerprint(self) -> str | None:
        """Covers the whole dataset and which of its examples these are."""
        if self._dataset.fingerprint is None:
            return None
        whole = np.array(self._dataset.fingerprint)
        return fingerprint.of_arrays({"whole": whole, "indices": self._indices})

    def lengths(self) -> np.ndarray | None:
        """The lengths of the subset, where those of the whole count."""
        lengths = self._dataset.lengths()
        return None if lengths is None else lengths[self._indices]

    def name_of(self, field: str) -> str:
        """The user's own name of a field of the whole dataset."""
        return self._dataset.name_of(field)

    def batch(self, indices: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches rows of a batch of the subset."""
        return self._dataset.batch(self._indices[indices], rows)


class Numbers(Dataset):
    """The numbers of examples, as `index`, in place of the examples."""

    in_memory = True

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the indices."""
        return {"index": indices.astype(np.int32)}


def class_labels(
    labels: np.ndarray, num_classes: int, *, where: str, numbers: np.ndarray
) -> np.ndarray:
    """Returns integer labels as int32[n], checked to lie in 0..num_classes - 1.

    Raises:
        UserError: with the first label out of range, and where: `numbers`, int[n], are those of
            the examples.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"labels must be in 0..{num_classes - 1} in {where}, "
            f"got {labels[wrong[0]]} at example {numbers[wrong[0]]}"
        )
    return labels.astype(np.int32)
