import numpy as np
import pytest

from flaxdl.data.dataset import ArrayDataset, RecordDataset, Subset, class_labels
from flaxdl.data.source import Splits, hold_out, take_fraction


class Records:
    """Records in a list, read as a TFDS data source is."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def __getitems__(self, keys):
        return [self.records[key] for key in keys]


def test_arrays_are_gathered_in_the_order_asked_for():
    dataset = ArrayDataset({"inputs": np.arange(12).reshape(6, 2), "label": np.arange(6)})
    batch = dataset.gather(np.array([4, 0, 4]))
    np.testing.assert_array_equal(batch["inputs"], [[8, 9], [0, 1], [8, 9]])
    np.testing.assert_array_equal(batch["label"], [4, 0, 4])


def test_gathered_arrays_are_copies():
    dataset = ArrayDataset({"inputs": np.zeros((3, 2))})
    dataset.gather(np.arange(3))["inputs"][:] = 1
    assert dataset.arrays()["inputs"].sum() == 0


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"one row per example.*inputs \[3, 2\], label \[2\]"):
        ArrayDataset({"inputs": np.zeros((3, 2)), "label": np.zeros(2)})
    with pytest.raises(ValueError, match=r"got shapes inputs \[\]"):
        ArrayDataset({"inputs": np.zeros(())})


def test_subset_maps_indices():
    dataset = ArrayDataset({"inputs": np.arange(10) * 10})
    subset = Subset(dataset, np.array([7, 3, 5]))
    assert len(subset) == 3
    np.testing.assert_array_equal(subset.gather(np.array([2, 0]))["inputs"], [50, 70])
    np.testing.assert_array_equal(subset.arrays()["inputs"], [70, 30, 50])


def test_records_are_renamed_stacked_and_decoded():
    records = Records(
        [
            {"image": np.full((2, 2, 1), i, np.uint8), "text": b"\xc3\xa9" * i, "y": i}
            for i in (0, 1, 2)
        ]
    )
    fields = {"inputs": "image", "label": "y", "caption": "text"}
    batch = RecordDataset(records, fields, num_classes=3).gather(np.array([2, 1]))
    np.testing.assert_array_equal(batch["inputs"][:, 0, 0, 0], [2, 1])
    assert batch["inputs"].dtype == np.uint8
    np.testing.assert_array_equal(batch["label"], [2, 1])
    assert batch["label"].dtype == np.int32
    assert batch["caption"].tolist() == ["éé", "é"]


def test_records_of_different_shapes_are_refused():
    records = Records([{"image": np.zeros((2, 2, 3))}, {"image": np.zeros((4, 2, 3))}])
    dataset = RecordDataset(records, {"inputs": "image"}, where="split 'train' of photos")
    with pytest.raises(
        ValueError, match=r"image of shapes \[2, 2, 3\] and \[4, 2, 3\] in split 'tr"
    ):
        dataset.gather(np.arange(2))


@pytest.mark.parametrize("widths", [(2, 3), (2, 2)])
def test_records_that_may_differ_in_size_come_one_by_one(widths):
    records = Records([{"image": np.full((1, width, 3), width)} for width in widths])
    batch = RecordDataset(records, {"inputs": "image"}, sizes_differ=True).gather(np.arange(2))
    assert batch["inputs"].dtype == object
    assert [image.shape for image in batch["inputs"]] == [(1, width, 3) for width in widths]


def test_a_label_out_of_range_is_refused_when_its_record_is_read():
    dataset = RecordDataset(
        Records([{"y": 0}, {"y": -1}]), {"label": "y"}, num_classes=5, where="split 'test' of pets"
    )
    with pytest.raises(ValueError, match=r"0\.\.4 in split 'test' of pets, got -1 at example 1"):
        dataset.gather(np.array([1, 0]))


def test_class_labels_become_int32():
    labels = class_labels(np.array([0, 2], np.int64), 3, where="here", numbers=np.arange(2))
    assert labels.dtype == np.int32
    with pytest.raises(ValueError, match=r"must be in 0\.\.2 in here, got 3 at example 1"):
        class_labels(np.array([0, 3]), 3, where="here", numbers=np.arange(2))


def test_splits_map_leaves_out_what_is_not_there():
    dataset = ArrayDataset({"inputs": np.zeros(4)})
    doubled = Splits(dataset, None, dataset, classes=("a",)).map(
        lambda split: Subset(split, np.arange(8) % 4)
    )
    assert (len(doubled.train), doubled.validation, len(doubled.test)) == (8, None, 8)
    assert doubled.classes == ("a",)


def test_hold_out_takes_every_class_in_proportion():
    labels = np.repeat(np.arange(3), [500, 300, 205]).astype(np.int32)
    dataset = ArrayDataset({"inputs": np.arange(1005), "label": labels})
    train, validation = hold_out(dataset, fraction=0.1, seed=3)
    assert (len(train), len(validation)) == (905, 100)
    counts = np.bincount(validation.arrays()["label"])
    assert np.abs(counts - np.array([49.75, 29.85, 20.4])).max() <= 1
    both = np.concatenate([train.arrays()["inputs"], validation.arrays()["inputs"]])
    np.testing.assert_array_equal(np.sort(both), np.arange(1005))


def test_hold_out_depends_on_the_seed_alone():
    dataset = ArrayDataset({"inputs": np.arange(100), "label": np.zeros(100, np.int32)})
    chosen = [hold_out(dataset, fraction=0.2, seed=s)[1].arrays()["inputs"] for s in (0, 0, 1)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert set(chosen[0]) != set(chosen[2])


def test_hold_out_is_no_fixed_stride_of_sorted_examples():
    dataset = ArrayDataset({"inputs": np.arange(100), "label": np.zeros(100, np.int32)})
    _, validation = hold_out(dataset, fraction=0.1, seed=0)
    assert len(set(np.diff(validation.arrays()["inputs"]))) > 3


def test_hold_out_of_regression_and_records():
    values = ArrayDataset({"inputs": np.arange(50), "label": np.linspace(0, 1, 50)})
    records = RecordDataset(Records([{"x": i} for i in range(50)]), {"inputs": "x"})
    for dataset in (values, records):
        train, validation = hold_out(dataset, fraction=0.1, seed=0)
        assert (len(train), len(validation)) == (45, 5)


def test_hold_out_of_nothing_and_of_too_much():
    dataset = ArrayDataset({"inputs": np.arange(3)})
    assert hold_out(dataset, fraction=0.0, seed=0) == (dataset, None)
    for fraction in (0.1, 1.0, -0.5):
        with pytest.raises(ValueError, match=rf"validation_fraction .* got {fraction} of 3"):
            hold_out(dataset, fraction=fraction, seed=0)


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.01, 14), (15 / 1437, 15), (0.05, 72), (0.5, 718)]
)
def test_a_fraction_has_every_class_in_proportion(fraction, count):
    labels = np.random.default_rng(0).permutation(np.arange(1437) % 10).astype(np.int32)
    dataset = ArrayDataset({"inputs": np.arange(1437), "label": labels})
    for seed in range(5):
        part = take_fraction(dataset, fraction, seed).arrays()
        assert len(part["inputs"]) == count
        counts = np.bincount(part["label"], minlength=10)
        assert np.abs(counts - count * np.bincount(labels) / 1437).max() <= 1
        assert (np.diff(part["inputs"]) > 0).all()
        np.testing.assert_array_equal(part["label"], labels[part["inputs"]])


def test_a_fraction_depends_on_the_seed_alone_and_the_whole_is_the_whole():
    dataset = ArrayDataset({"inputs": np.arange(200), "label": np.zeros(200, np.int32)})
    chosen = [set(take_fraction(dataset, 0.1, seed).arrays()["inputs"]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert take_fraction(dataset, 1.0, 0) is dataset
    train, _ = hold_out(dataset, fraction=0.1, seed=0)
    assert len(take_fraction(train, 0.1, 0)) == 18


def test_an_impossible_fraction_is_refused():
    dataset = ArrayDataset({"inputs": np.arange(3)})
    for fraction in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=rf"above 0 and at most 1, got {fraction}"):
            take_fraction(dataset, fraction, 0)
    with pytest.raises(
        ValueError, match="train_fraction must leave at least one example, got 0.1 of 3"
    ):
        take_fraction(dataset, 0.1, 0)


class Labelled(ArrayDataset):
    in_memory = False

    def labels(self):
        return self.arrays()["label"]


def test_labels_that_are_known_without_reading_divide_classes_evenly():
    dataset = Labelled({"inputs": np.arange(100), "label": np.arange(100) % 4})
    train, validation = hold_out(dataset, fraction=0.2, seed=0)
    np.testing.assert_array_equal(np.bincount(validation.gather(np.arange(20))["label"]), [5] * 4)
    np.testing.assert_array_equal(np.bincount(train.labels()), [20] * 4)
    part = take_fraction(train, 0.1, 0)
    np.testing.assert_array_equal(np.bincount(part.labels()), [2] * 4)
    assert ArrayDataset({"inputs": np.arange(3)}).labels() is None
