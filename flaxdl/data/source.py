"""Sources: the config values that say where examples come from, and the splits they load."""

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
    """The datasets of a run."""

    train: Dataset
    """What is trained on."""
    validation: Dataset | None
    """What chooses the best checkpoint."""
    test: Dataset | None
    """What is looked at once, at the end."""
    classes: tuple[str, ...] | None
    """What the labels 0, 1, ... are called; None where labels are no classes."""

    def __post_init__(self):
        repeated = [name for name, count in Counter(self.classes or ()).items() if count > 1]
        if repeated:
            raise UserError(
                f"class names must be unique, got {', '.join(map(repr, repeated[:10]))} "
                f"more than once"
            )

    def map(self, transform: Callable[[Dataset], Dataset]) -> "Splits":
        """Applies `transform` to each split there is."""
        return Splits(
            train=transform(self.train),
            validation=None if self.validation is None else transform(self.validation),
            test=None if self.test is None else transform(self.test),
            classes=self.classes,
        )

    def identity(self) -> Mapping[str, Any]:
        """Classes, and size and fingerprint of each split, as JSON: equal for equal data."""
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
    """Where examples come from: a value that a config file constructs.

    A source of your own is a frozen dataclass with a `load` method.
    """

    @abstractmethod
    def load(self, seed: int) -> Splits:
        """Reads the splits; `seed` decides what is held out for validation.

        Raises:
            UserError: naming the split, file or field at fault.
        """


def hold_out(train: Dataset, *, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Takes `fraction` of the training examples away for validation, from each class its share.

    A fraction of zero holds nothing out.

    Returns:
        What remains for training, and the validation set; both in the order of `train`.

    Raises:
        UserError: if one of the two would be empty.
    """
    if fraction == 0:
        return train, None
    count, total = round(fraction * len(train)), len(train)
    if not 0 < count < total:
        raise UserError(
            f"validation_fraction must leave examples on both sides, "
            f"got {fraction} of {total} training examples"
        )
    # pipeline.py takes (seed, ..., 0) and (seed, ..., 1)
    held_out = _choose(train, count, np.random.default_rng((seed, 0, 2)))
    return Subset(train, np.flatnonzero(~held_out)), Subset(train, np.flatnonzero(held_out))


def share_of(train: Dataset, fraction: float, seed: int) -> Dataset:
    """Keeps `fraction` of the training examples, from each class its share, in their order.

    Raises:
        UserError: if the fraction is not above 0 and at most 1, or nothing would be left.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"train_fraction must be above 0 and at most 1, got {fraction}")
    if fraction == 1:
        return train
    count = round(fraction * len(train))
    if count == 0:
        raise UserError(
            f"train_fraction must leave an example, got {fraction} of {len(train)} examples"
        )
    return Subset(train, np.flatnonzero(_choose(train, count, np.random.default_rng((seed, 0, 3)))))


def _choose(dataset: Dataset, count: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses `count` examples by chance, as bool[N].

    Where labels are classes and at hand, every class gives its share, to within one example: the
    examples are shuffled, sorted by label, and taken at equal distances.
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
