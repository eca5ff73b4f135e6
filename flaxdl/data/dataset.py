"""Datasets with random access to batches of examples.

An example is a row of named arrays: `inputs` is the model's input and `label` its target; all other
arrays are passed to the model as keyword arguments. N: number of examples, n: number of requested
examples.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from flaxdl.data import fingerprint
from flaxdl.data.skipped_examples import SkippedExamples
from flaxdl.errors import UserError

_SAMPLED_VALUES = 2**22
_SAMPLED_EXAMPLES = 256
_SAMPLED_FILES = 16  # decoding one takes up to 50 ms


class Dataset(ABC):
    """Base class of datasets: examples 0 to N - 1, fetched by arrays of indices."""

    in_memory = False
    """True if fetching examples only copies memory."""
    decodes_files = False
    """True if fetching is CPU-bound, so that worker processes may speed it up."""
    skipped: SkippedExamples | None = None
    """Counter of unreadable examples; their `weight` in a batch is 0."""
    label_error: str | None = None
    """Reason why the labels cannot be classes; None if they can or if this is not yet known."""
    examples_in_0_1_0: int | None = None
    """Number of examples according to the rules of flaxdl 0.1.0, if it differs."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns N, the number of examples."""

    @abstractmethod
    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches the examples at `indices` (int[n]), as one new array [n, ...] per name."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Fetches all examples; they must fit into memory."""
        return self.gather(np.arange(len(self)))

    def labels(self) -> np.ndarray | None:
        """Returns all labels [N, ...], or None if getting them requires reading every example."""
        return self.arrays().get("label") if self.in_memory else None

    def weights(self) -> np.ndarray | None:
        """Returns all weights [N]; None if there are none, or if this requires reading examples."""
        return self.arrays().get("weight") if self.in_memory else None

    @property
    def fingerprint(self) -> str | None:
        """Short text that identifies the examples; None if it cannot be computed cheaply."""
        return None

    def name_of(self, field: str) -> str:
        """Returns the user-facing name of a field, for messages."""
        return field

    def example_name(self, index: int) -> str | None:
        """Returns the file name of an example; None if it is not a file."""
        return None

    def lengths(self) -> np.ndarray | None:
        """Returns the lengths of the examples, int[N]; None disables length bucketing."""
        return None

    def read_groups(self) -> np.ndarray | None:
        """Returns the number of the group of each example that is read as a whole, int[N].

        An epoch then reads few groups at the same time; None if all orders are equally fast.
        """
        return None

    def batch(self, indices: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches the examples `indices[rows]` (rows: int[n]) of the batch `indices`.

        Array shapes may depend on all indices of the batch, as with length bucketing.
        """
        return self.gather(indices[rows])


class ArrayDataset(Dataset):
    """Dataset of arrays in memory, one row per example.

    Args:
        arrays: arrays [N, ...] by field name.
        names: user-facing names by field name; by default, the field names.

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
        """Fingerprint of all arrays; rows of arrays above 1 GiB are sampled."""
        return fingerprint.of_arrays(self._arrays)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches the examples at `indices` (int[n]) by indexing the arrays."""
        return {name: array[indices] for name, array in self._arrays.items()}

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays without copying them."""
        return dict(self._arrays)

    def name_of(self, field: str) -> str:
        """Returns the user-facing name of a field, for messages."""
        return self._names.get(field, field)


class Records(Protocol):
    """Protocol of a TFDS data source: records read from files in batches."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[int], /) -> Sequence[Mapping[str, Any]]: ...


class RecordDataset(Dataset):
    """Dataset of records that are read from files and decoded on access.

    Args:
        records: data source with random access.
        fields: record keys by field name, as in `{"inputs": "image"}`.
        num_classes: number of classes, used to check the labels; None if labels are not classes.
        sizes_differ: True if inputs may differ in shape; they are returned as an object array of
            arrays.
        where: description of the records for error messages, such as `split 'train' of mnist`.
        version: text that identifies the records; None if unknown.
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
        """Fingerprint of `version` and `fields`; None without a version."""
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
                f"all examples must have the same shape, got {field} of shapes "
                f"{' and '.join(str(list(shape)) for shape in shapes[:3])} in {self._where}"
            )
        return np.stack(values) if values else np.zeros(0)


def sample(dataset: Dataset) -> dict[str, np.ndarray]:
    """Fetches at most 256 evenly spaced examples, fewer if they are large or stored in files."""
    if dataset.in_memory:
        size = max(dataset.gather(np.arange(1))["inputs"].size, 1)
        count = min(max(_SAMPLED_VALUES // size, 1), _SAMPLED_EXAMPLES, len(dataset))
    else:
        count = min(_SAMPLED_FILES, len(dataset))
    return dataset.gather(np.linspace(0, len(dataset) - 1, count).astype(np.int64))


def rows(values: Sequence[Any]) -> np.ndarray:
    """Returns an object array of the given values; `np.array` would stack arrays of one shape."""
    array = np.empty(len(values), object)
    for number, value in enumerate(values):
        array[number] = value
    return array


class Subset(Dataset):
    """Dataset of the examples of `dataset` at `indices`, in that order."""

    def __init__(self, dataset: Dataset, indices: np.ndarray):
        self.in_memory = dataset.in_memory
        self.decodes_files = dataset.decodes_files
        self.skipped = dataset.skipped
        self.label_error = dataset.label_error
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches the examples at positions `indices` (int[n]) of the subset."""
        return self._dataset.gather(self._indices[indices])

    def labels(self) -> np.ndarray | None:
        """Returns the labels of the subset, or None if those of the whole dataset are unknown."""
        labels = self._dataset.labels()
        return None if labels is None else labels[self._indices]

    def weights(self) -> np.ndarray | None:
        """Returns the weights of the subset, or None if those of the whole dataset are unknown."""
        weights = self._dataset.weights()
        return None if weights is None else weights[self._indices]

    @cached_property
    def fingerprint(self) -> str | None:
        """Fingerprint of the whole dataset and the indices; None if the former is None."""
        if self._dataset.fingerprint is None:
            return None
        whole = np.array(self._dataset.fingerprint)
        return fingerprint.of_arrays({"whole": whole, "indices": self._indices})

    def lengths(self) -> np.ndarray | None:
        """Returns the lengths of the examples of the subset; None disables length bucketing."""
        lengths = self._dataset.lengths()
        return None if lengths is None else lengths[self._indices]

    def read_groups(self) -> np.ndarray | None:
        """Returns the groups of the examples of the subset; None if there are no groups."""
        groups = self._dataset.read_groups()
        return None if groups is None else groups[self._indices]

    def name_of(self, field: str) -> str:
        """Returns the user-facing name of a field, for messages."""
        return self._dataset.name_of(field)

    def example_name(self, index: int) -> str | None:
        """Returns the file name of an example of the subset."""
        return self._dataset.example_name(int(self._indices[index]))

    def batch(self, indices: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Fetches the examples `indices[rows]` of the subset."""
        return self._dataset.batch(self._indices[indices], rows)


class IndexDataset(Dataset):
    """Dataset with a single field, `index`, for examples that are stored on the devices."""

    in_memory = True

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the indices as int32[n]."""
        return {"index": indices.astype(np.int32)}


def class_labels(
    labels: np.ndarray, num_classes: int, *, where: str, numbers: np.ndarray
) -> np.ndarray:
    """Returns integer labels as int32[n] after checking that they are in 0..num_classes - 1.

    Args:
        labels: integer labels [n].
        num_classes: number of classes.
        where: description of the labels' origin, for the error message.
        numbers: example numbers of the labels, int[n], for the error message.

    Raises:
        UserError: if a label is out of range; the message contains the first one and its number.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise UserError(
            f"labels must be in 0..{num_classes - 1} in {where}, "
            f"got {labels[wrong[0]]} at example {numbers[wrong[0]]}"
        )
    return labels.astype(np.int32)
