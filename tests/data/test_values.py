"""What is said of values that a network cannot learn from."""

import re

import numpy as np
import pytest
from PIL import Image

from flaxdl.data import Arrays, ImageFolder, Images, Transform
from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.values import check_finite, check_inputs

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (60, 4, 4, 1), dtype=np.uint8)


def source(inputs, **arrays):
    label = np.arange(len(inputs)) % 2
    return Arrays.from_memory(train_inputs=inputs, train_label=label, **arrays)


def look_at(inputs, transform):
    splits = source(inputs).load(seed=0)
    transform = transform.fit(splits.train)
    check_inputs(splits.map(transform.apply).train, transform)


@pytest.mark.parametrize(
    ("inputs", "transform"),
    [
        (BYTES, Images()),
        (BYTES.astype(np.int64), Images()),
        (BYTES > 100, Images()),
        (BYTES.astype(np.uint16) * 257, Images()),
        (BYTES / np.float32(255), Images()),
        (BYTES.astype(np.float32), Images(mean=(127.5,), std=(127.5,))),
        (RNG.normal(size=(60, 3)), Transform()),
        (RNG.integers(0, 10**6, (60, 8)), Transform()),  # tokens
    ],
)
def test_usual_values_are_not_worth_a_word(inputs, transform, caplog):
    look_at(inputs, transform)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("inputs", "transform", "message"),
    [
        (BYTES.astype(np.float32), Images(), r"\(float32, 0 to 255\): mean 2\d\d\.?\d* and.*"
         "divide byte values by 255"),
        (BYTES, Images(mean=(127.5,), std=(127.5,)), r"\(uint8, 0 to 255\).*set trans"),
        (BYTES // 16, Images(), r"\(uint8, 0 to 15\)"),  # the deviation is 0.04
        (BYTES.astype(np.uint16), Images(), r"\(uint16, 0 to 255\)"),
        (RNG.normal(-80, 9, (60, 5)), Transform(), r"float64, .* Subtract their mean and divide"),
        (np.zeros((60, 5), np.float16), Transform(), "float16, 0 to 0.*standard deviation 0 "),
    ],
)  # fmt: skip
def test_what_is_far_from_normalized_is_named(inputs, transform, message, caplog):
    look_at(inputs, transform)
    (record,) = caplog.records
    assert record.getMessage().startswith("train_inputs (")
    assert re.search(message, record.getMessage())


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(np.int16, -1000, 3000), (np.int32, 0, 256), (np.int8, -5, 5), (np.uint32, 0, 4095)],
)
def test_other_integers_are_no_images(dtype, low, high):
    inputs = np.zeros((60, 4, 4, 1), dtype)
    inputs[3, 0, 0], inputs[4, 0, 0] = low, high
    name = np.dtype(dtype).name
    with pytest.raises(
        ValueError, match=rf"train_inputs must be int.*got {name} from {low} to {high}"
    ):
        look_at(inputs, Images())


def test_integers_and_booleans_become_bytes():
    splits = source(BYTES.astype(np.int32), validation_fraction=0.0).load(seed=0)
    np.testing.assert_array_equal(Images().apply(splits.train).arrays()["inputs"], BYTES)
    assert Images().apply(splits.train).arrays()["inputs"].dtype == np.uint8
    splits = source(BYTES > 9, validation_fraction=0.0).load(seed=0)
    expected = np.where(BYTES > 9, 255, 0)
    np.testing.assert_array_equal(Images().apply(splits.train).arrays()["inputs"], expected)
    assert Images().apply(splits.train).name_of("inputs") == "train_inputs"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((28, 28), r"got \[N, 28, 28\]; for grayscale images, use train_inputs\[..., None\]"),
        ((784,), r"got \[N, 784\]; use train_inputs.reshape\(-1, 28, 28, 1\)"),
        ((700,), r"got \[N, 700\]; use train_inputs.reshape\(-1, H, W, 1\)"),
        ((2, 28, 28, 1), r"got \[N, 2, 28, 28, 1\]$"),
    ],
)
def test_images_without_all_axes_are_refused(shape, message):
    with pytest.raises(
        ValueError, match=rf"train_inputs must have shape \[N, H, W, C\], {message}"
    ):
        look_at(np.zeros((40, *shape), np.uint8), Images())


def test_channels_first_are_noticed(caplog):
    look_at(np.repeat(BYTES.reshape(60, 1, 4, 4), 3, axis=1), Images())
    assert (
        "train_inputs (uint8) has shape [N, 3, 4, 4], which looks like [N, C, H, W]" in caplog.text
    )
    assert "use train_inputs.transpose(0, 2, 3, 1)" in caplog.text
    caplog.clear()
    look_at(np.repeat(BYTES.reshape(60, 4, 4, 1), 3, axis=3)[:, :3], Images())
    assert caplog.text == ""


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
def test_values_that_are_not_finite_are_refused(value, dtype):
    inputs = RNG.normal(size=(60, 2, 3)).astype(dtype)
    check_finite("x", inputs)
    inputs[[7, 9], 1, 2] = value
    kind = "NaN" if np.isnan(value) else "infinity"
    message = (
        rf"train_inputs \({np.dtype(dtype).name}\) contains {kind} in example 7; 2 of 60 examples"
    )
    with pytest.raises(ValueError, match=message):
        source(inputs).load(seed=0)


def test_targets_and_other_splits_are_looked_at():
    inputs, target = RNG.normal(size=(2, 60, 3))
    target[5] = np.inf
    arrays = {"test_inputs": inputs, "test_label": target}
    with pytest.raises(
        ValueError, match=r"test_label \(float64\) contains infinity in example 5; 1 of 60"
    ):
        Arrays.from_memory(train_inputs=inputs, train_label=inputs, **arrays).load(seed=0)


def test_what_only_normalization_makes_infinite_is_refused():
    dataset = ArrayDataset({"inputs": np.full((3, 2, 2, 1), 60000, np.float16)})
    with pytest.raises(ValueError, match=r"inputs \(float16, 6e\+04 to 6e\+04\): some values"):
        check_inputs(dataset, Images(std=(0.5,)))


def test_a_test_split_that_is_the_training_split_is_noticed(caplog):
    source(BYTES, test_inputs=BYTES, test_label=np.zeros(60, int)).load(seed=0)
    assert "100% of the examples in test_inputs are also in train_inputs" in caplog.text
    caplog.clear()
    others = RNG.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    others[:10] = BYTES[::-1][:10]
    source(BYTES, validation_inputs=others, validation_label=np.zeros(40, int)).load(seed=0)
    assert "25% of the examples in validation_inputs are also in train_inputs" in caplog.text


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, "U", bool])
def test_different_examples_are_told_apart(dtype, caplog):
    values = RNG.integers(0, 2 if dtype is bool else 100, (3000, 30)).astype(dtype)
    Arrays.from_memory(
        train_inputs=values[:2000],
        train_label=np.arange(2000) % 2,
        test_inputs=values[2000:],
        test_label=np.zeros(1000, int),
    ).load(seed=0)
    assert caplog.text == ""


def test_examples_that_differ_in_few_values_are_told_apart(caplog):
    tokens = np.zeros((300, 512), np.int32)  # short texts, padded
    tokens[:, 1:7] = RNG.integers(1000, size=(300, 6))
    source(tokens[:200], test_inputs=tokens[200:], test_label=np.zeros(100, int)).load(seed=0)
    assert caplog.text == ""


def test_a_normalization_of_ones_own_gets_an_array_of_jax():
    class Zeroed(Transform):
        def normalize(self, inputs):
            return inputs.at[..., 0].set(0)

    check_inputs(ArrayDataset({"inputs": RNG.normal(size=(20, 4)).astype(np.float32)}), Zeroed())


def test_examples_without_weight_need_not_be_finite():
    inputs = RNG.normal(size=(20, 4)).astype(np.float32)
    inputs[3] = np.nan
    weight = np.ones(20, np.float32)
    weight[3] = 0
    check_inputs(ArrayDataset({"inputs": inputs, "weight": weight}), Transform())


def test_files_are_looked_at_as_well(tmp_path, caplog):
    for number in range(40):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(BYTES[number, ..., 0]).save(path)
    train = ImageFolder(str(tmp_path)).load(seed=0).train
    check_inputs(train, Images(size=4))
    assert caplog.text == ""
    check_inputs(train, Images(size=4, mean=(100.0,), std=(50.0,)))
    assert f"the images in {tmp_path} (uint8, 0 to 255): mean -1.9" in caplog.text
