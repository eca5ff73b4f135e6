"""Multi-label and regression targets: arrays of them, and the checks that their tasks ask for."""

import logging

import numpy as np
import pytest

from flaxdl.data import ArrayDataset, Arrays, Splits, take_fraction
from flaxdl.data.balanced_sampling import balanced_labels
from flaxdl.data.class_counts import class_counts, warn_about_few_examples
from flaxdl.data.dataset import RecordDataset
from flaxdl.data.labels import check_class_labels
from flaxdl.data.numeric_labels import check_multi_label, check_numeric_targets
from flaxdl.data.source import hold_out
from flaxdl.errors import UserError

pytestmark = pytest.mark.quick

INPUTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
TAGS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]] * 10)
AGES = np.linspace(1, 2, 40)


def load(label, **arrays):
    if "test_label" in arrays:
        arrays["test_inputs"] = INPUTS[: len(arrays["test_label"])] + 1
    source = Arrays.from_memory(
        train_inputs=INPUTS, train_label=label, validation_fraction=0.0, **arrays
    )
    return source.load(seed=0)


def with_entries(array, *entries):
    changed = array.astype(np.float64)
    for place, value in entries:
        changed[place] = value
    return changed


def splits_of(train, validation=None, classes=None):
    datasets = [
        None if label is None else ArrayDataset({"inputs": INPUTS[: len(label)], "label": label})
        for label in (train, validation)
    ]
    return Splits(datasets[0], datasets[1], None, classes)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_arrays_of_0_and_1_are_several_labels(dtype):
    splits = load(TAGS.astype(dtype), test_label=TAGS[1:3].astype(dtype))
    assert splits.classes == ("0", "1", "2")
    labels = splits.train.labels()
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, TAGS)
    np.testing.assert_array_equal(splits.test.labels(), [[1, 1, 0], [0, 0, 0]])
    check_multi_label(splits)


def test_missing_entries_are_kept():
    missing = with_entries(TAGS, ((3, 1), np.nan), ((5, np.s_[1:]), np.nan))
    splits = load(missing, classes=np.array(["cat", "dog", "owl"]))
    assert splits.classes == ("cat", "dog", "owl")
    np.testing.assert_array_equal(splits.train.labels(), missing)
    check_multi_label(splits)
    check_numeric_targets(splits)


def test_numbers_have_names_only_if_given():
    numbers = np.stack([AGES, -AGES], 1)
    splits = load(numbers)
    assert (splits.classes, splits.train.labels().dtype) == (None, np.float32)
    np.testing.assert_array_equal(splits.train.labels(), numbers.astype(np.float32))
    assert load(numbers, classes=np.array(["a", "b"])).classes == ("a", "b")
    assert load(AGES).classes is None
    assert load(AGES, classes=np.array(["age"])).classes == ("age",)
    counts = load(TAGS + 1)  # may be those of a custom task
    assert (counts.classes, counts.train.labels().dtype) == (None, np.int64)
    counts = load(TAGS + 1, classes=np.array(["a", "b", "c"]))
    assert (counts.classes, counts.train.labels().dtype) == (("a", "b", "c"), np.float32)
    mixed = load(TAGS, test_label=TAGS[:4] * 2)  # 2 is no label of several
    assert (mixed.classes, mixed.test.labels().dtype) == (None, np.int64)


@pytest.mark.parametrize(
    ("label", "names", "message"),
    [
        (TAGS, "ab", r"each column of the labels, got 2 names for train_label int64 \[40, 3\]"),
        (AGES, "ab", r"has 2 names, so labels must be .* got train_label float64 \[40\]"),
        (AGES > 1.5, "ab", r"has 2 names, so labels must be .* got train_label bool \[40\]"),
        (np.zeros((40, 2, 2)), "ab", r"has 2 names, .* got train_label float64 \[40, 2, 2\]"),
    ],
)
def test_names_that_fit_no_column_are_refused(label, names, message):
    with pytest.raises(UserError, match=f"classes .*{message}"):
        load(label, classes=np.array(list(names)))


def test_infinite_numbers_are_refused():
    with pytest.raises(UserError, match=r"train_label \(float64\) contains infinity in example 7"):
        load(with_entries(AGES, (7, np.inf), (3, np.nan)))
    with pytest.raises(UserError, match=r"finite in float32 or NaN .*, got 1e\+39 at example 7"):
        load(with_entries(AGES, (7, 1e39)))
    with pytest.raises(UserError, match=r"contains NaN in example 7"):
        load(with_entries(np.zeros((40, 2, 2)), (7, np.nan)))


def test_a_changed_entry_changes_the_fingerprint():
    first = load(TAGS).identity()["splits"]["train"]["fingerprint"]
    assert load(TAGS.astype(float)).identity()["splits"]["train"]["fingerprint"] == first
    for entry in (((3, 1), 0), ((3, 1), np.nan)):
        changed = load(with_entries(TAGS, entry)).identity()["splits"]["train"]["fingerprint"]
        assert changed != first


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.arange(40) % 3, r"\[N, K\], got int32 \[40\]; single classes need the task Classifica"),
        (np.array(["a", "b"] * 20), r"got int32 \[40\]; single classes need the task Classificat"),
        (AGES, r"got float32 \[40\]; numbers need the task Regression"),
        (TAGS[:, :, None] / 1, r"got float64 \[40, 3, 1\]; single classes need"),
        (
            with_entries(TAGS, ((7, 2), 3), ((9, 1), 0.5)),
            r"got 3 at example 7 in column 2; other numbers need the task Regression",
        ),
        (
            with_entries(TAGS, (np.s_[:, 1], np.nan)),
            r"no known value in the training split in column 1: all are missing \(NaN\)",
        ),
    ],
)
def test_what_is_not_multi_label_is_refused(label, message):
    with pytest.raises(UserError, match=f"train_label .*{message}"):
        check_multi_label(load(label))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.arange(40) % 3, r"got int32 \[40\]; classes need the task Classification"),
        (np.array(["a", "b"] * 20), r"got int32 \[40\]; classes need the task Classification"),
        (
            2000 * np.arange(40),
            r"got int64 \[40\]; .* in arrays \(train_label.astype\('float32'\)\)",
        ),
        (TAGS + 1, r"got int64 \[40, 3\]"),
        (np.zeros((40, 2, 2)), r"got float64 \[40, 2, 2\]"),
        (np.full(40, np.nan), r"has no known value: all are missing \(NaN\)"),
        (
            with_entries(TAGS, (np.s_[:, 1], np.nan)),
            r"no known value in the training split in column 1: all are missing",
        ),
    ],
)
def test_what_is_not_a_number_is_refused(label, message):
    with pytest.raises(UserError, match=f"train_label .*{message}"):
        check_numeric_targets(load(label))


def test_columns_of_all_splits_agree():
    labels = TAGS.astype(np.float32)
    with pytest.raises(UserError, match=r"same number of columns, got label .*3\], label .*2\]"):
        check_multi_label(splits_of(labels, labels[:, :2]))
    with pytest.raises(UserError, match=r"columns, as many as the 2 names, got label float32 \[40"):
        check_numeric_targets(splits_of(labels, classes=("a", "b")))
    with pytest.raises(UserError, match=r"same number of columns, got label .*40\], label .*1\]"):
        check_numeric_targets(splits_of(labels[:, 0], labels[:, :1]))
    with pytest.raises(UserError, match=r"finite or NaN .*, got -inf at example 3 in column 'b'"):
        check_numeric_targets(splits_of(with_entries(TAGS, ((3, 1), -np.inf)), None, tuple("abc")))
    with pytest.raises(UserError, match="needs the field 'label', which the data do not have"):
        check_numeric_targets(Splits(ArrayDataset({"inputs": INPUTS}), None, None, None))


def test_labels_that_must_be_read_are_checked_by_the_first():
    class Records(list):
        def __getitems__(self, keys):
            return [self[key] for key in keys]

    records = Records([{"image": np.zeros(3), "label": 1}] * 4)
    dataset = RecordDataset(records, {"inputs": "image", "label": "label"}, num_classes=2)
    for check in (check_multi_label, check_numeric_targets):
        with pytest.raises(UserError, match=r"got int32 \[1\]; .*need the task Classification"):
            check(Splits(dataset, None, None, ("a", "b")))


def test_columns_that_cannot_be_learned_or_evaluated_are_named(caplog):
    train = with_entries(TAGS, (np.s_[:, 0], 1), ((4, 0), np.nan))
    validation = with_entries(TAGS[:8], (np.s_[:, 1:], np.nan))
    splits = splits_of(train, validation, ("cat", "dog", "owl"))
    check_multi_label(splits)
    expected = [
        "label has only one value in the training split in column cat, which cannot be learned",
        "label has no known value in the validation split in columns dog, owl, which cannot be "
        "evaluated there",
    ]
    assert warnings(caplog) == expected
    check_numeric_targets(splits)
    assert warnings(caplog) == 2 * expected


def test_subsets_and_counts_do_not_depend_on_numbers(caplog):
    for label in (TAGS.astype(np.float32), AGES.astype(np.float32)):
        splits = splits_of(label, classes=tuple("abc") if label.ndim == 2 else None)
        train, validation = hold_out(splits.train, fraction=0.25, seed=0)
        assert (len(train), len(validation)) == (30, 10)
        both = np.concatenate([train.labels(), validation.labels()])
        np.testing.assert_array_equal(np.sort(both, 0), np.sort(label, 0))
        assert take_fraction(train, 0.5, seed=0).labels().shape == (15, *label.shape[1:])
        assert class_counts(splits) == {}
        warn_about_few_examples(splits, by_class=False)
        assert warnings(caplog) == []
        with pytest.raises(UserError, match="balanced_sampling needs one integer class number"):
            balanced_labels(splits.train)


@pytest.mark.parametrize("several", [True, False])
def test_examples_without_any_known_label_are_dropped(caplog, several):
    label = with_entries(TAGS, (5, np.nan), ((7, 0), np.nan)) if several else AGES.copy()
    label[[5, 9]] = np.nan
    kept = np.delete(np.arange(40), [5, 9])
    splits = load(label, test_label=label[:7], train_weight=np.arange(40))
    arrays = splits.train.arrays()
    np.testing.assert_array_equal(arrays["inputs"], INPUTS[kept])
    np.testing.assert_array_equal(arrays["label"], label[kept].astype(np.float32))
    np.testing.assert_array_equal(arrays["weight"], kept)
    assert len(splits.test) == 6
    assert warnings(caplog) == [
        "train_label: dropped 2 of 40 examples, which have no known value (all NaN)",
        "test_label: dropped 1 of 7 examples, which have no known value (all NaN)",
    ]
    # They are no classes: a cast to integers would give them one.
    with pytest.raises(UserError, match="with nan at example 5; remove examples without a class"):
        check_class_labels(splits)
    with pytest.raises(UserError, match="train_weight must not be 0 for all examples"):
        load(label, train_weight=np.isnan(label.reshape(40, -1)).all(1))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_columns_of_integers_are_checked(caplog, dtype):
    labels = with_entries(TAGS, (np.s_[:, 1], 1)).astype(dtype)
    check_multi_label(splits_of(labels, labels[:3]))
    assert warnings(caplog) == [
        "label has only one value in the training split in column 1, which cannot be learned"
    ]


def test_a_cast_is_suggested_only_for_numbers():
    for label, cast in ((TAGS[:, 0], True), (np.array(["a", "b"] * 20), False)):
        with pytest.raises(UserError) as raised:
            check_numeric_targets(load(label))
        assert ("train_label.astype('float32')" in str(raised.value)) == cast
