"""A user's own arrays, of any rank: images, spectrograms, time series."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flaxdl.data.dataset import ArrayDataset, class_labels
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.paths import local_path
from flaxdl.spelling import did_you_mean

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Arrays(Source):
    """Arrays named after split and field: `train_inputs`, `train_label`, `test_inputs`, ...

    Integer labels [N] are classes, called by the array `classes` where there is one and by their
    numbers otherwise. Whatever else a split has, as `train_lengths`, goes to the model by keyword.
    Without `validation_inputs`, a part of the training split is held out. Write such a file with
    `numpy.savez("data.npz", train_inputs=..., train_label=..., ...)`.
    """

    path: str
    """The .npz file."""
    validation_fraction: float = 0.1
    """Share of the training split that is held out where the file has no validation split."""
    arrays: Any = field(default=None, repr=False, compare=False)
    """The arrays themselves, where they are in memory and `path` is their fingerprint."""

    @classmethod
    def from_memory(cls, *, validation_fraction: float = 0.1, **arrays: Any) -> "Arrays":
        """Makes a source of arrays in memory, under the names that they would have in a file.

        Example:
            Arrays.from_memory(train_inputs=x, train_label=y, test_inputs=u, test_label=v)
        """
        copies = {name: _plain(array) for name, array in arrays.items()}
        digest = hashlib.sha256()
        for name, array in sorted(copies.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        path = f"memory:{digest.hexdigest()[:16]}"
        return cls(path, validation_fraction=validation_fraction, arrays=copies)

    def load(self, seed: int) -> Splits:
        """Reads and checks the arrays.

        Raises:
            ValueError: naming the file and the array that is missing, misnamed, empty or wrong.
        """
        arrays = dict(self.arrays) if self.arrays is not None else _read(self.path)
        names: Any = arrays.pop("classes", None)
        self._check_names(arrays)
        splits = {
            split: {
                name.removeprefix(f"{split}_"): array
                for name, array in arrays.items()
                if name.startswith(f"{split}_")
            }
            for split in _SPLITS
        }
        num_classes = _num_classes(splits, names)
        datasets = {
            split: self._dataset(split, fields, num_classes)
            for split, fields in splits.items()
            if fields
        }
        train, validation = datasets["train"], datasets.get("validation")
        if validation is None:
            train, validation = hold_out(train, fraction=self.validation_fraction, seed=seed)
        if num_classes is not None and names is None:
            names = range(num_classes)
        classes = None if num_classes is None else tuple(str(name) for name in names)
        return Splits(train, validation, datasets.get("test"), classes)

    def _check_names(self, arrays: Mapping[str, np.ndarray]) -> None:
        beginnings = tuple(f"{split}_" for split in _SPLITS)
        needed = {
            f"{split}_{field}"
            for split in _SPLITS
            if split == "train" or any(name.startswith(f"{split}_") for name in arrays)
            for field in ("inputs", "label")
        }
        for name in arrays:
            if not name.startswith(beginnings):
                raise ValueError(
                    f"arrays in {self.path} must be named train_*, validation_*, test_* or "
                    f"classes, got {name!r}{did_you_mean(name, [*needed, 'classes'])}"
                )
        missing = sorted(needed - set(arrays))
        if missing:
            raise ValueError(
                f"{self.path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays))}"
            )

    def _dataset(
        self, split: str, fields: dict[str, np.ndarray], num_classes: int | None
    ) -> ArrayDataset:
        try:
            dataset = ArrayDataset(fields)
        except ValueError as error:
            raise ValueError(f"{split} split of {self.path}: {error}") from None
        if len(dataset) == 0:
            raise ValueError(f"the {split} split of {self.path} is empty")
        if num_classes is None:
            return dataset
        label = class_labels(
            fields["label"],
            num_classes,
            where=f"{split}_label of {self.path}",
            numbers=np.arange(len(dataset)),
        )
        return ArrayDataset(fields | {"label": label})


def _plain(array: Any) -> np.ndarray:
    """A NumPy array of its own; Python strings become NumPy's, whose bytes can be hashed."""
    array = np.array(array)
    return array.astype(str) if array.dtype == object else array


def _read(path: str) -> dict[str, np.ndarray]:
    if path.startswith("memory:"):
        raise ValueError(f"{path} was in memory when the run was made; give the arrays again")
    try:
        with local_path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise ValueError(f"no such file: {path}") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a .npz file: {error}") from error


def _num_classes(splits: Mapping[str, Mapping[str, np.ndarray]], names: Any) -> int | None:
    """How many classes the labels speak of, or None where they are no classes."""
    labels = [fields["label"] for fields in splits.values() if fields]
    if any(label.ndim != 1 or label.dtype.kind not in "iu" for label in labels):
        return None
    if names is not None:
        return len(names)
    return 1 + max((int(label.max()) for label in labels if label.size), default=0)
