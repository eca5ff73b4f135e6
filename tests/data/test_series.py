"""Series: statistics of the training split, padding, and files for prediction."""

import logging

import numpy as np
import pytest

from flaxdl.data import ArrayDataset, Arrays, Series
from flaxdl.data.series import FittedSeries
from flaxdl.errors import UserError

pytestmark = pytest.mark.quick

# Two series of 3 steps and 1 step; what follows their ends counts nowhere.
INPUTS = np.array([[[1, 10], [2, 10], [3, 10]], [[6, 10], [99, -99], [99, 99]]], np.float32)
LENGTHS = np.array([3, 1])
DATA = ArrayDataset({"inputs": INPUTS, "lengths": LENGTHS, "label": np.array([0, 1])})


def fitted(**settings):
    return Series(**settings).fit(DATA)


def test_statistics_are_those_of_the_real_steps():
    # Steps 1, 2, 3 and 6: mean 3, squares 4 + 1 + 0 + 9 = 14. The second channel is constant.
    transform = fitted()
    assert transform.mean == (3.0, 10.0)
    assert transform.std == pytest.approx((np.sqrt(14 / 4), 1.0))
    arrays = transform.apply(DATA).arrays()
    scale = np.sqrt(14 / 4)
    expected = np.array([[-2 / scale, -1 / scale, 0], [3 / scale, 0, 0]])
    np.testing.assert_allclose(arrays["inputs"][..., 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(arrays["inputs"][..., 1], np.zeros((2, 3)))
    np.testing.assert_array_equal(arrays["lengths"], LENGTHS)
    np.testing.assert_array_equal(arrays["label"], [0, 1])
    assert arrays["inputs"].dtype == np.float32


def test_long_series_are_truncated_and_short_ones_padded(caplog):
    transform = fitted(max_length=2, standardize=False)
    with caplog.at_level(logging.WARNING):
        arrays = transform.apply(DATA).arrays()
    assert "inputs: 1 of 2 series are longer than 2 steps and are truncated" in caplog.text
    np.testing.assert_array_equal(arrays["inputs"][0], INPUTS[0, :2])
    np.testing.assert_array_equal(arrays["inputs"][1], [[6, 10], [0, 0]])
    np.testing.assert_array_equal(arrays["lengths"], [2, 1])
    longer = fitted(max_length=5).apply(DATA).arrays()
    assert longer["inputs"].shape == (2, 5, 2)
    np.testing.assert_array_equal(longer["lengths"], LENGTHS)


def test_series_of_one_length_have_no_lengths():
    data = ArrayDataset({"inputs": INPUTS[:, :, 0], "label": np.array([0, 1])})
    transform = Series().fit(data)
    arrays = transform.apply(data).arrays()
    assert "lengths" not in arrays
    assert arrays["inputs"].shape == (2, 3, 1)
    short = ArrayDataset({"inputs": INPUTS[:, :2, 0], "label": np.array([0, 1])})
    with pytest.raises(ValueError, match="inputs must have at least 3 steps, .* got 2"):
        transform.apply(short)


def test_a_list_of_series_is_padded():
    rng = np.random.default_rng(0)
    series = [rng.standard_normal((length, 2)) for length in (4, 2, 3, 1)]
    source = Arrays.from_memory(
        train_inputs=series, train_label=[0, 1, 0, 1], validation_fraction=0
    )
    arrays = source.load(seed=0).train.arrays()
    np.testing.assert_array_equal(arrays["lengths"], [4, 2, 3, 1])
    for row, one in zip(arrays["inputs"], series, strict=True):
        np.testing.assert_array_equal(row[: len(one)], one)
        np.testing.assert_array_equal(row[len(one) :], 0)
    with pytest.raises(ValueError, match="train_inputs must be one array"):
        Arrays.from_memory(train_inputs=[*series, np.zeros((4, 3))], train_label=[0] * 5)


def test_the_statistics_are_restored_exactly(tmp_path):
    transform = fitted(max_length=4)
    transform.save(tmp_path)
    restored = Series(max_length=4).restore(tmp_path)
    assert isinstance(restored, FittedSeries)
    assert vars(restored) == vars(transform)
    (tmp_path / "series.json").write_text("{}")
    with pytest.raises(ValueError, match=r"series.json cannot be read: 'length'"):
        Series().restore(tmp_path)


def test_files_are_read_as_the_training_series(tmp_path):
    transform, expected = fitted(), fitted().apply(DATA).arrays()
    np.save(tmp_path / "a.npy", INPUTS[0])
    (tmp_path / "b.csv").write_text("left,right\n6,10\n")
    (tmp_path / "c.CSV").write_text("6,1e1\n\n")
    items = [str(tmp_path / name) for name in ("a.npy", "b.csv", "c.CSV")]
    batch = transform.read(items, {"inputs": (3, 2), "lengths": ()})
    np.testing.assert_array_equal(batch["inputs"], expected["inputs"][[0, 1, 1]])
    np.testing.assert_array_equal(batch["lengths"], [3, 1, 1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "1,2\n3\n", r"a.csv:2 must have 2 numbers, as the first row, got 1 cells"),
        ("a.csv", "1,2\n3,x\n", r"a.csv:2 must have 2 numbers, .* got 'x'"),
        ("a.csv", "left,right\n", r"must contain a series of numbers, .* got float64 \[0, 1\]"),
        ("a.csv", "1,nan\n", "must contain finite numbers, got .* at step 0"),
        ("a.csv", "1,2,3\n", r"a.csv must have 2 channels, as in training, got 3"),
        ("a.csv", "1.5,\n3,4\n", r"a.csv:1 must have 2 numbers, .* got ''"),
        ("a.csv", "time,2\n3,4\n", r"a.csv:1 must have 2 numbers, .* got 'time'"),
        ("a.csv", ",\n3,4\n", r"a.csv:1 must have 2 numbers, .* got ''"),
        ("a.csv", "1," + "2" * 140_000, r"a.csv cannot be read as a .csv file: field larger"),
        ("b.csv", None, r"b.csv cannot be read"),
        ("a.npy", "1,2\n", r"a.npy cannot be read as a .npy file"),
        ("a.npy", "", r"a.npy cannot be read as a .npy file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        fitted().read([str(tmp_path / name)], {"inputs": (3, 2), "lengths": ()})


def test_an_archive_is_no_series(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=INPUTS)
    with pytest.raises(UserError, match=r"a.npz cannot be read as a .npy file"):
        fitted().read([str(tmp_path / "a.npz")], {"inputs": (3, 2), "lengths": ()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": np.zeros(2)}, r"inputs must be series of numbers, .* got float64 \[2\]"),
        ({"inputs": np.array([["a"], ["b"]])}, "inputs must be series of numbers"),
        ({"lengths": np.array([3, 4])}, "lengths must be from 1 to 3, .* got 4 at example 1"),
        ({"lengths": np.array([0, 3])}, "lengths must be from 1 to 3, .* got 0 at example 0"),
        ({"lengths": np.array([1.0, 3])}, "lengths must be one integer per series, got float64"),
    ],
)
def test_wrong_data_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Series().fit(ArrayDataset(DATA.arrays() | changes))


def test_max_length_is_checked():
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        Series(max_length=0)
