"""What is said of splits that are small or lack classes."""

import numpy as np
import pytest

from flaxdl.data import Splits
from flaxdl.data.class_counts import describe, warn_about_few_examples
from flaxdl.data.dataset import ArrayDataset

pytestmark = pytest.mark.quick


def dataset(*counts):
    label = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return ArrayDataset({"inputs": np.zeros((len(label), 1)), "label": label})


def test_counts_by_class_are_one_line():
    splits = Splits(dataset(1200, 49), dataset(7, 3), None, ("cat\n", "d" * 50))
    line = f"train / validation by class: cat 1,200 / 7, {'d' * 37}... 49 / 3"
    assert describe(splits) == line
    many = Splits(dataset(*range(1, 12)), None, dataset(*[2] * 11), tuple("abcdefghijk"))
    assert describe(many) == "train / test for each of 11 classes: 1 to 11 / 2"
    assert describe(Splits(dataset(3, 3), None, None, None)) is None


def test_a_split_large_enough_is_not_worth_a_word(caplog):
    warn_about_few_examples(
        Splits(dataset(90, 90), dataset(50, 50), dataset(1, 0), ("cat", "dog")), by_class=True
    )
    warn_about_few_examples(
        Splits(dataset(9, 9), None, dataset(1, 0), ("cat", "dog")), by_class=True
    )
    warn_about_few_examples(Splits(dataset(90, 90), dataset(50, 50), None, None), by_class=True)
    targets = Splits(dataset(0, 9), dataset(100, 0), None, ("0", "1"))
    warn_about_few_examples(targets, by_class=False)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ((50, 49), "has only 99 examples, "),
        ((100, 0), "lacks 1 of 2 classes (dog), "),
        ((1, 0), "has only 1 example and lacks 1 of 2 classes (dog), "),
    ],
)
def test_a_split_too_small_to_choose_by_is_named(validation, message, caplog):
    warn_about_few_examples(
        Splits(dataset(90, 90), dataset(*validation), None, ("cat", "dog")), by_class=True
    )
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the validation split {message}so model selection")


def test_classes_without_training_examples_are_named_together(caplog):
    train = dataset(5, *[0] * 14, 7)
    names = tuple(map(str, range(16)))
    warn_about_few_examples(Splits(train, dataset(60, *[0] * 14, 60), None, names), by_class=True)
    (record,) = caplog.records
    assert record.getMessage() == (
        "14 of 16 classes (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 4 more) have no training examples: label "
        "has 2 distinct values from 0 to 15"
    )
