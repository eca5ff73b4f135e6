"""Source for NumPy arrays of any rank: images, spectrograms, time series."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flaxdl.checks import did_you_mean
from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.labels import as_classes, describe_missing
from flaxdl.data.numeric_labels import is_missing_label
from flaxdl.data.series import pad
from flaxdl.data.source import Source, Splits, hold_out
from flaxdl.data.texts import add_to_digest, as_texts
from flaxdl.data.values import check_finite, check_weights, warn_about_shared_examples
from flaxdl.errors import UserError
from flaxdl.filesystem.inputs import input_path

_LOGGER = logging.getLogger(__name__)
_SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {
    "train": ("training", "tr"),
    "validation": ("val", "valid", "dev", "eval"),
    "test": ("testing", "te"),
}
_FIELD_WORDS = {
    "inputs": ("input", "x", "images", "image", "data", "features"),
    "label": ("labels", "y", "targets", "target", "class", "classes"),
}


@dataclass(frozen=True)
class Arrays(Source):
    """Arrays named by split and field: `train_inputs`, `train_label`, `test_inputs`, ...

    Integer labels [N] are classes 0 to K - 1, named by the array `classes` if there is one and by
    their numbers otherwise; string labels [N] are classes in alphabetical order. Labels [N, K] of
    0, 1 and NaN (missing) are those of K classes, several of which may apply to an example; float
    labels [N] or [N, K] are numbers to predict, or NaN. `classes` names the columns of both, which
    are converted to float32. Examples whose labels are all NaN are dropped with a warning.

    `train_weight`, [N], contains the weight of each example in the training loss, at least 0;
    examples of weight 0 (in any split) are also left out of evaluation, in which all others count
    equally. Other fields of a split, such as `train_lengths`, are passed to the model as keyword
    arguments. Without `validation_inputs`, part of the training split is held out for validation.
    Such a file can be written by `numpy.savez("data.npz", train_inputs=..., train_label=..., ...)`.
    """

    path: str
    """Path or URL of the .npz file."""
    validation_fraction: float = 0.1
    """Fraction of the training split held out for validation if the data has no such split."""
    arrays: Any = field(default=None, repr=False, compare=False)
    """In-memory arrays by name, set by `from_memory`; `path` is then a hash of their content."""

    @classmethod
    def from_memory(cls, *, validation_fraction: float = 0.1, **arrays: Any) -> "Arrays":
        """Makes a source from arrays in memory, named as in a file.

        Series of different lengths can be a list of arrays [T, C]: for `train_inputs`, they are
        padded with zeros, and their lengths become `train_lengths`.

        >>> source = flaxdl.data.Arrays.from_memory(
        ...     train_inputs=np.zeros((40, 8, 8, 3), np.uint8), train_label=np.arange(40) % 4
        ... )
        >>> splits = source.load(seed=0)
        >>> len(splits.train), len(splits.validation)
        (36, 4)
        """
        for name in [name for name in arrays if name.endswith("_inputs")]:
            lengths = f"{name.removesuffix('_inputs')}_lengths"
            if lengths not in arrays and _differ_in_length(arrays[name]):
                arrays[name], arrays[lengths] = pad(arrays[name])
        copies = {name: _plain(name, array) for name, array in arrays.items()}
        digest = hashlib.sha256()
        for name, array in sorted(copies.items()):
            if array.dtype == object:
                add_to_digest(digest, name, array)
            else:
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(array.tobytes())
        path = f"memory:{digest.hexdigest()[:16]}"
        return cls(path, validation_fraction=validation_fraction, arrays=copies)

    def load(self, seed: int) -> Splits:
        """Reads and checks the arrays.

        Raises:
            UserError: if an array is missing, misnamed, empty or invalid; the message names the
                file and the array.
        """
        arrays = self.arrays if self.arrays is not None else _read(self.path)
        arrays = {name: _with_plain_texts(name, array) for name, array in arrays.items()}
        names: Any = arrays.pop("classes", None)
        self._check_names(arrays)
        try:
            datasets, classes = _datasets(arrays, names)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        train, validation = datasets["train"], datasets.get("validation")
        if validation is None:
            train, validation = hold_out(train, fraction=self.validation_fraction, seed=seed)
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
                raise UserError(
                    f"arrays in {self.path} must be named train_*, validation_*, test_* or "
                    f"classes, got {name!r}{_hint(name, [*needed, 'classes'])}"
                )
        missing = sorted(needed - set(arrays))
        if missing:
            others = [_hint(name, missing) for name in arrays if name not in needed]
            raise UserError(
                f"{self.path} lacks {', '.join(missing)}; it contains {', '.join(sorted(arrays))}"
                + next(filter(None, others), "")
            )


def _datasets(
    arrays: Mapping[str, np.ndarray], names: np.ndarray | None
) -> tuple[dict[str, ArrayDataset], tuple[str, ...] | None]:
    """Returns the datasets by split, and the names of the classes or columns of the labels."""
    datasets = {}
    for split in _SPLITS:
        keys = {key.removeprefix(f"{split}_"): key for key in arrays if key.startswith(f"{split}_")}
        if keys:
            fields = {field: arrays[key] for field, key in keys.items()}
            datasets[split] = _dataset(split, fields, keys)
    labels = {f"{split}_label": arrays[f"{split}_label"] for split in datasets}
    classes = as_classes(labels, None if names is None else _class_names(names))
    error = classes.error
    for split, dataset in datasets.items():
        fields = dataset.arrays() | {"label": classes.labels[f"{split}_label"]}
        is_missing = is_missing_label(fields["label"])
        if is_missing.any():
            error = error or describe_missing(f"{split}_label", fields["label"], is_missing)
            fields = _without(is_missing, split, fields)
        datasets[split] = ArrayDataset(fields, names={x: f"{split}_{x}" for x in fields})
    datasets["train"].label_error = error
    warn_about_shared_examples({f"{split}_inputs": arrays[f"{split}_inputs"] for split in datasets})
    return datasets, classes.names


def _dataset(
    split: str, fields: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> ArrayDataset:
    try:
        dataset = ArrayDataset(fields)
    except UserError as error:
        raise UserError(f"{split} split: {error}") from None
    if len(dataset) == 0:
        raise UserError(f"the {split} split is empty")
    label = fields["label"]
    if label.ndim <= 2 and label.dtype.kind == "f":
        label = np.where(np.isnan(label), 0, label)  # NaN is a missing entry
    check_finite(names["inputs"], fields["inputs"])
    check_finite(names["label"], label)
    if "weight" in fields:
        check_weights(names["weight"], fields["weight"])
    return dataset


def _without(
    is_missing: np.ndarray, split: str, fields: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Drops the examples without a label, with a warning."""
    name, total = f"{split}_label", len(is_missing)
    if is_missing.all():
        raise UserError(f"{name} has no known value: all are missing (NaN)")
    _LOGGER.warning(
        "%s: dropped %s of %s examples, which have no known value (all NaN)",
        name, f"{is_missing.sum():,}", f"{total:,}",
    )  # fmt: skip
    kept = {field: array[~is_missing] for field, array in fields.items()}
    if "weight" in kept:  # those of the remaining examples must not all be 0
        check_weights(f"{split}_weight", kept["weight"])
    return kept


def _class_names(names: np.ndarray) -> list[str]:
    if names.ndim != 1:
        raise UserError(f"classes must be names [K], got {names.dtype} {list(names.shape)}")
    return [
        n.decode("utf-8", "backslashreplace") if isinstance(n, bytes) else str(n) for n in names
    ]


def _differ_in_length(values: Any) -> bool:
    """Returns True for a list of arrays that differ only in the size of their first axis."""
    if not isinstance(values, list | tuple) or not all(
        isinstance(one, np.ndarray) and one.ndim and one.dtype.kind in "biuf" for one in values
    ):
        return False
    return len({len(one) for one in values}) > 1 and len({one.shape[1:] for one in values}) == 1


def _plain(name: str, values: Any) -> np.ndarray:
    """Copies values to a NumPy array; text becomes an object array of Python strings."""
    if isinstance(values, list | tuple) and any(isinstance(v, str | bytes) for v in values):
        return as_texts(values, name)
    try:
        array = np.array(values)
    except ValueError as error:  # rows of different shapes
        raise UserError(f"{name} must be one array: {error}") from error
    if array.dtype == object and all(isinstance(v, int | float | np.number) for v in array.flat):
        array = np.array(array.tolist())  # e.g. numbers in a pandas column
    return _with_plain_texts(name, array)


def _with_plain_texts(name: str, array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        return _plain(name, array)
    is_texts = array.dtype == object or (array.ndim == 1 and array.dtype.kind in "UST")
    return as_texts(array, name) if is_texts else array


def _read(path: str) -> dict[str, np.ndarray]:
    if path.startswith("memory:"):
        raise UserError(
            f"{path}: the arrays of this run were in memory and are not stored; pass them again"
        )
    place = input_path(path)
    try:
        with place.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                raise UserError(
                    "it contains a single unnamed array; save named arrays with "
                    "numpy.savez('data.npz', train_inputs=..., train_label=...)"
                )
            with content as arrays:
                return dict(arrays)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except Exception as error:
        raise UserError(f"{path} cannot be read as a .npz file: {error}") from error


def _hint(name: str, known: Sequence[str]) -> str:
    """Returns a suggestion for a misnamed array, such as `; did you mean 'train_inputs'?`

    Recognizes common names such as `x_train`; otherwise, suggests the nearest name in `known`.
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    splits = [split for split, others in _SPLIT_WORDS.items() if words & {split, *others}]
    fields = [field for field, others in _FIELD_WORDS.items() if words & {field, *others}]
    if splits and fields:
        return f"; did you mean '{splits[0]}_{fields[0]}'?"
    return did_you_mean(name, known)
