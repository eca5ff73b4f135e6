"""Base class of data sources, and the splits they load."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxdl.data.dataset import Dataset, Subset
from flaxdl.errors import UserError


@dataclass(frozen=True)
class Splits:
    """Training, validation and test split of a run's data."""

    train: Dataset
    """Training split."""
    validation: Dataset | None
    """Validation split, used for model selection."""
    test: Dataset | None
    """Test split, evaluated once, at the end of the run."""
    classes: tuple[str, ...] | None
    """Names of the classes 0, 1, ..., or of the columns of labels [N, K]; None if labels have no
    names."""

    def __post_init__(self):
        repeated = [name for name, count in Counter(self.classes or ()).items() if count > 1]
        if repeated:
            raise UserError(
                f"class names must be unique, got {', '.join(map(repr, repeated[:10]))} "
                f"more than once"
            )

    def map(self, transform: Callable[[Dataset], Dataset]) -> "Splits":
        """Applies `transform` to each split that is not None."""
        return Splits(
            train=transform(self.train),
            validation=None if self.validation is None else transform(self.validation),
            test=None if self.test is None else transform(self.test),
            classes=self.classes,
        )

    def identity(self) -> Mapping[str, Any]:
        """Returns the classes and each split's size and fingerprint, as JSON-compatible values."""
        datasets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "classes": None if self.classes is None else list(map(str, self.classes)),
            "splits": {
                name: _identity(dataset)
                for name, dataset in datasets.items()
                if dataset is not None
            },
        }


def _identity(dataset: Dataset) -> dict[str, Any]:
    facts = {"examples": len(dataset), "fingerprint": dataset.fingerprint}
    if dataset.examples_in_0_1_0 is not None:
        facts["examples_in_0_1_0"] = dataset.examples_in_0_1_0
    return facts


@dataclass(frozen=True)
class Source(ABC):
    """Base class of data sources, the values of `data` in a config.

    To add a source, write a frozen dataclass with a `load` method.
    """

    @abstractmethod
    def load(self, seed: int) -> Splits:
        """Reads the splits; `seed` determines the examples held out for validation.

        Raises:
            UserError: if the data cannot be loaded; the message names the split, file or field.
        """


def hold_out(train: Dataset, *, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Holds out `fraction` of the training examples for validation, stratified by class.

    Returns:
        The remaining training split and the validation split, both in the order of `train`. If
        `fraction` is 0, these are `train` and None.

    Raises:
        UserError: if one of the two splits would be empty.
    """
    if fraction == 0:
        return train, None
    count, total = round(fraction * len(train)), len(train)
    if not 0 < count < total:
        raise UserError(
            f"validation_fraction must leave examples in both splits, "
            f"got {fraction} of {total} training examples"
        )
    # pipeline.py uses (seed, ..., 0) and (seed, ..., 1).
    held_out = _choose(train, count, np.random.default_rng((seed, 0, 2)))
    return Subset(train, np.flatnonzero(~held_out)), Subset(train, np.flatnonzero(held_out))


def take_fraction(train: Dataset, fraction: float, seed: int) -> Dataset:
    """Keeps a random `fraction` of the training examples, in order, stratified by class.

    Raises:
        UserError: if the fraction is not in (0, 1], or if no examples would remain.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"train_fraction must be above 0 and at most 1, got {fraction}")
    if fraction == 1:
        return train
    count = round(fraction * len(train))
    if count == 0:
        raise UserError(
            f"train_fraction must leave at least one example, got {fraction} of {len(train)}"
        )
    return Subset(train, np.flatnonzero(_choose(train, count, np.random.default_rng((seed, 0, 3)))))


def _choose(dataset: Dataset, count: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses `count` random examples; returns a mask, bool[N].

    If labels are classes and known in advance, the choice is stratified to within one example per
    class: examples are shuffled, sorted by label, and chosen at equal distances.
    """
    total = len(dataset)
    order = rng.permutation(total)
    labels = dataset.labels()
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu":
        order = order[np.argsort(labels[order], kind="stable")]
    distance = total / count
    chosen = np.zeros(total, bool)
    chosen[order[((np.arange(count) + rng.random()) * distance).astype(np.int64)]] = True
    return chosen
