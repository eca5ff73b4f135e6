"""Which labels of arrays are classes, and what is said of those that are not."""

import numpy as np
import pytest

from flaxdl.data import Arrays, Splits, take_fraction
from flaxdl.data.labels import check_class_labels

pytestmark = pytest.mark.quick

NUMBERS = np.arange(60) % 4
INPUTS = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


def load(label, test_label=None, **arrays):
    if test_label is not None:
        arrays |= {"test_inputs": INPUTS[: len(test_label)] + 1, "test_label": test_label}
    return Arrays.from_memory(train_inputs=INPUTS, train_label=label, **arrays).load(seed=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, np.int64])
def test_whole_numbers_of_any_dtype_are_classes(dtype):
    splits = load(NUMBERS.astype(dtype))
    assert splits.classes == ("0", "1", "2", "3")
    assert splits.train.labels().dtype == np.int32
    check_class_labels(splits)


@pytest.mark.parametrize("dtype", [None, bytes, object])
def test_texts_are_classes_by_name(dtype):
    texts = np.array(["cat ", "ant", "bee", "dog"])[NUMBERS]
    splits = load(texts if dtype is None else texts.astype(dtype), np.array(["dog", "ant", "cat"]))
    assert splits.classes == ("ant", "bee", "cat", "dog")
    np.testing.assert_array_equal(splits.test.labels(), [3, 0, 2])
    names = np.array([b"dog", b"cat", b"bee", b"ant"])
    splits = load(texts, classes=names, validation_fraction=0.0)
    assert splits.classes == ("dog", "cat", "bee", "ant")
    np.testing.assert_array_equal(splits.train.labels()[:4], [1, 3, 2, 0])
    with pytest.raises(
        ValueError, match="test_label has classes .* not in train_label: ants; did you mean"
    ):
        load(texts, np.array(["ants"]))
    with pytest.raises(ValueError, match="train_label has classes that are not in classes: dog"):
        load(texts, classes=names[1:])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            1 + NUMBERS,
            r"train_label .int64. has 4 distinct values from 1 to 4, .*: subtract 1, in every",
        ),
        (
            10 * (1 + NUMBERS % 3),
            r"3 distinct values from 10 to 30, .*: renumber them with numpy.unique\(train_label",
        ),
        (NUMBERS * 10**9, "only 4 distinct values from 0 to 3,000,000,000, too few"),
        (2 * (NUMBERS % 2) - 1, r"class labels in train_label must start at 0, got -1 at"),
    ],
)
def test_labels_that_do_not_count_from_0_are_refused(label, message):
    with pytest.raises(ValueError, match=message):
        check_class_labels(load(label))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_that_training_lacks_is_refused(split):
    other = {f"{split}_inputs": INPUTS[:5] + 1, f"{split}_label": np.array([0, 4, 4, 5, 4])}
    with pytest.raises(
        ValueError, match=rf"{split}_label has .* that are not in train_label: 4 \(3\), 5 \(1\)"
    ):
        check_class_labels(load(NUMBERS, **other))
    named = {"classes": np.array(list("abcdef")), **other}
    with pytest.raises(ValueError, match=r"that are not in train_label: e \(3\), f \(1\)"):
        check_class_labels(load(NUMBERS, **named))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (NUMBERS.astype("f4"), r"got float32 \[54\]; use train_label.astype\(int\)"),
        (NUMBERS > 1, r"got bool \[54\]; use train_label.astype\(int\)"),
        (
            NUMBERS[:, None],
            r"got int64 \[54, 1\]; use train_label\[:, 0\], or the task Regression$",
        ),
        (
            NUMBERS[:, None] / 1,
            r"got float32 \[54, 1\]; use train_label\[:, 0\].astype\(int\), or the task Regr",
        ),
        (
            NUMBERS[:, None] > 1,
            r"float32 \[54, 1\]; use .*\[:, 0\].astype\(int\), or the task MultiLabelClassific",
        ),
        (NUMBERS[:, None] + 0.5, r"got float32 \[54, 1\]; use the task Regression$"),
        (
            np.eye(4)[NUMBERS],
            r"\[54, 4\], one-hot; use train_label.argmax\(1\), or the task MultiLabelClassific",
        ),
        (np.eye(4, dtype=int)[NUMBERS], r"one-hot; use train_label.argmax\(1\)"),
        (NUMBERS + 0.5, r"float32 \[54\], with [0-3].5 at example 0; use the task Regression$"),
        (
            np.where(np.arange(60) < 50, np.nan, NUMBERS),
            r"with nan at example 0; remove examples without a class, or use the task Regression",
        ),
        (np.ones((60, 2)), r"got float32 \[54, 2\]; use the task MultiLabelClassification$"),
        (np.full((60, 2), 0.5), r"got float32 \[54, 2\]; use the task Regression$"),
        (np.ones((60, 2, 2)), r"got float64 \[54, 2, 2\]$"),
        (np.ones((60, 2), "M8[s]"), r"got datetime64\[s\] \[54, 2\]$"),
    ],
)
def test_what_is_no_class_is_refused_with_the_remedy(label, message):
    splits = load(label)
    with pytest.raises(
        ValueError, match=f"train_label must be one integer class number .*{message}"
    ):
        check_class_labels(splits)


def test_whole_numbers_may_be_the_targets_of_a_regression():
    ages, incomes = 18 + NUMBERS, 1000 * NUMBERS
    splits = load(ages, ages[:5] + 60)
    np.testing.assert_array_equal(splits.test.labels(), ages[:5] + 60)
    splits = load(incomes, validation_fraction=0.0)
    assert splits.classes is None
    np.testing.assert_array_equal(splits.train.labels(), incomes)
    assert splits.train.label_error is not None
    assert take_fraction(splits.train, 0.5, seed=0).label_error == splits.train.label_error


def test_labels_of_every_split_are_checked():
    with pytest.raises(
        ValueError, match=r"test_label must be one integer .* got float32 \[5\]; use"
    ):
        check_class_labels(load(NUMBERS, np.zeros(5)))


def test_names_of_classes_differ():
    with pytest.raises(ValueError, match="must be unique, got 'a' more than once"):
        load(NUMBERS, classes=np.array(["a", "b", "a", "c"]))
    with pytest.raises(ValueError, match=r"classes must be names \[K\], got <U1 \[2, 2\]"):
        load(NUMBERS, classes=np.array([["a", "b"], ["c", "d"]]))
    train = load(NUMBERS).train
    with pytest.raises(ValueError, match="must be unique"):
        Splits(train, None, None, classes=("a", "b", "b", "a"))
