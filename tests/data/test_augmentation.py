"""Random operations as a part of Images: draws, order, sizes, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from flaxdl.data import (
    Augmentation,
    AutoAugment,
    ImageRows,
    Images,
    RandAugment,
    TrivialAugmentWide,
)
from flaxdl.data.augmentation import crop, flip
from flaxdl.data.auto_augment import IMAGENET_POLICIES
from flaxdl.data.image_operations import OPERATIONS, operate
from flaxdl.data.resizing import center_crop, random_resized_crop

pytestmark = pytest.mark.quick

KINDS = (TrivialAugmentWide, RandAugment, AutoAugment)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_every_operation_magnitude_and_sign_is_drawn_equally_often():
    draws = TrivialAugmentWide().draw(rng(), 50_000)
    for name, count in (("operations", 14), ("bins", 31)):
        counts = np.bincount(draws[name], minlength=count)
        assert len(counts) == count
        np.testing.assert_allclose(counts / 50_000, 1 / count, rtol=0.1)
    assert 0.49 < draws["negative"].mean() < 0.51
    draws = RandAugment(num_ops=3).draw(rng(), 20_000)
    assert draws["operations"].shape == draws["negative"].shape == (20_000, 3)
    np.testing.assert_allclose(np.bincount(draws["operations"].ravel()) / 60_000, 1 / 14, rtol=0.1)
    draws = AutoAugment().draw(rng(), 50_000)
    np.testing.assert_allclose(np.bincount(draws["policies"]) / 50_000, 1 / 25, rtol=0.1)
    assert draws["chances"].shape == draws["negative"].shape == (50_000, 2)
    assert 0.49 < draws["negative"].mean() < 0.51
    # Of the first policy, Posterize has probability 0.4 and Rotate 0.6.
    of_first = {name: array[draws["policies"] == 0] for name, array in draws.items()}
    names = [[name for name, _ in one] for one in AutoAugment().operations(of_first, 8, 8)]
    assert 0.36 < np.mean(["Posterize" in one for one in names]) < 0.44
    assert 0.56 < np.mean(["Rotate" in one for one in names]) < 0.64
    assert len(IMAGENET_POLICIES) == 25


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_draws_stay_as_they_were(kind):
    settings = {"size": 8, "min_scale": 0.3, "rotation": 5.0, "crop_padding": 1, "flip": True}
    before = Images(**settings).draw(rng(), 6)
    after = Images(**settings, augment=kind()).draw(rng(), 6)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    assert len(after) > len(before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_operations_come_after_crop_and_flip(kind, channels):
    images = noise(32, 12, 10, channels)
    transform = Images(crop_padding=2, flip=True, augment=kind())
    draws = transform.draw(rng(), 32)
    cropped = flip(crop(images, draws["offsets"], padding=2), draws["flipped"])
    expected = kind().augment(cropped, draws)
    before = images.copy()
    np.testing.assert_array_equal(transform.prepare({"inputs": images}, draws)["inputs"], expected)
    np.testing.assert_array_equal(images, before)
    assert (expected != cropped).any(axis=(1, 2, 3)).mean() > 0.5
    evaluated = transform.prepare({"inputs": images}, {})["inputs"]
    np.testing.assert_array_equal(evaluated, images)


def test_operations_are_applied_in_the_order_in_which_they_are_drawn():
    image = noise(1, 16, 16, 3)
    places = np.array([[OPERATIONS.index("Rotate"), OPERATIONS.index("Solarize")]])
    draws = {"operations": places, "negative": np.array([[True, True]])}
    augmentation = RandAugment(magnitude=30, interpolation="bilinear", fill=(7,))
    (result,) = augmentation.augment(image, draws)
    rotated = Image.fromarray(image[0]).rotate(-30, Image.Resampling.BILINEAR, fillcolor=(7, 7, 7))
    np.testing.assert_array_equal(result, 255 - np.asarray(rotated))  # a threshold of 0


def test_a_fill_may_have_one_value_per_channel():
    draws = {
        "operations": np.array([OPERATIONS.index("TranslateX")]),
        "bins": np.array([30]),  # 32 pixels
        "negative": np.array([False]),
    }
    image = noise(1, 4, 40, 3)
    (moved,) = TrivialAugmentWide(fill=(1, 2, 3)).augment(image, draws)
    np.testing.assert_array_equal(moved[:, :32], np.full((4, 32, 3), [1, 2, 3]))
    np.testing.assert_array_equal(moved[:, 32:], image[0, :, :8])


def test_without_augmentation_images_stay():
    images = noise(2, 4, 4, 5).astype(np.float32)
    assert Augmentation().draw(rng(), 2) == {}
    assert Augmentation().augment(images, {}) is images
    assert Images().augment == Augmentation()


def test_an_unknown_operation_is_no_mistake_of_the_user():
    with pytest.raises(ValueError, match="unknown operation 'Blur'"):
        operate(Image.new("L", (2, 2)), "Blur", 0.0, resample=Image.Resampling.NEAREST, fill=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 6, 3), np.float32), r"needs uint8 .* got float32\[8, 6, 3\]"),
        (np.zeros((2, 8, 6, 1), np.uint16), r"needs uint8 .* got uint16\[8, 6, 1\]"),
        (np.zeros((2, 8, 6, 4), np.uint8), r"with 1 or 3 channels, got uint8\[8, 6, 4\]"),
    ],
)
def test_only_bytes_of_one_or_three_channels_are_augmented(kind, images, message):
    transform = Images(augment=kind())
    with pytest.raises(
        ValueError, match=f"{kind.__name__} {message}" if "needs" in message else message
    ):
        transform.prepare({"inputs": images}, transform.draw(rng(), 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TrivialAugmentWide(num_magnitude_bins=1),
            "augment.num_magnitude_bins must be an integer, at least 2, got 1",
        ),
        (
            lambda: TrivialAugmentWide(num_magnitude_bins=2.5),
            "num_magnitude_bins must be an integer, at least 2, got 2.5",
        ),
        (
            lambda: TrivialAugmentWide(interpolation="bicubic"),
            "augment.interpolation must be 'nearest' or 'bilinear', got 'bicubic'",
        ),
        (
            lambda: RandAugment(interpolation=2),
            "augment.interpolation must be 'nearest' or 'bilinear', got 2",
        ),
        (lambda: RandAugment(num_ops=0), "augment.num_ops must be an integer, at least 1, got 0"),
        (
            lambda: RandAugment(magnitude=31),
            "augment.magnitude must be an integer, from 0 to 30, got 31",
        ),
        (
            lambda: RandAugment(magnitude=-1),
            "augment.magnitude must be an integer, from 0 to 30, got -1",
        ),
        (
            lambda: RandAugment(magnitude=True),
            "augment.magnitude must be an integer, from 0 to 30, got True",
        ),
        (
            lambda: RandAugment(num_magnitude_bins=0),
            "augment.num_magnitude_bins must be an integer, at least 2, got 0",
        ),
        (
            lambda: AutoAugment(fill=()),
            r"augment.fill must be a tuple of integers from 0 to 255, got \(\)",
        ),
        (
            lambda: AutoAugment(fill=0),
            "augment.fill must be a tuple of integers from 0 to 255, got 0",
        ),
        (
            lambda: AutoAugment(fill=(256,)),
            r"augment.fill must be a tuple of integers from 0 to 255, got \(256,\)",
        ),
        (
            lambda: AutoAugment(fill=(0.5,)),
            r"augment.fill must be a tuple of integers from 0 to 255, got \(0.5,\)",
        ),
        (
            lambda: Images(augment="TrivialAugmentWide"),
            r"augment must be TrivialAugmentWide\(\), .* got 'TrivialAugmentWide'",
        ),
        (
            lambda: Images(augment=TrivialAugmentWide),
            r"augment must be TrivialAugmentWide\(\), .* got <class",
        ),
        (lambda: Images(augment=None), r"augment must be TrivialAugmentWide\(\), .* got None"),
        (
            lambda: Images(size=8, min_scale=0.1, train_size=0),
            "train_size must be an integer, at least 1, got 0",
        ),
        (
            lambda: Images(size=8, min_scale=0.1, train_size=7.5),
            "train_size must be an integer, at least 1, got 7.5",
        ),
        (
            lambda: Images(size=8, train_size=6),
            "train_size 6 is the size of random resized crops, which require min_scale, got None",
        ),
    ],
)
def test_wrong_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("fill", [(1, 2), (1, 2, 3)])
def test_a_fill_that_does_not_fit_the_channels_is_named(fill):
    augmentation = TrivialAugmentWide(fill=fill)
    with pytest.raises(
        ValueError, match=r"augment.fill must have 1 value or one per channel \(1\)"
    ):
        augmentation.augment(noise(2, 4, 4, 1), augmentation.draw(rng(), 2))


def photographs():
    images = np.empty(3, object)
    images[:] = [noise(20, 30, 3), noise(64, 25, 3), noise(9, 9, 3)]
    return images


@pytest.mark.parametrize("kind", [Images, ImageRows])
def test_training_may_use_another_size_than_evaluation(kind, tmp_path):
    transform = kind(size=16, resize=20, min_scale=0.2, flip=True, train_size=12)
    images, draws = photographs(), transform.draw(rng(), 3)
    trained = transform.prepare({"inputs": images}, draws)["inputs"]
    parts = zip(images, draws["areas"], draws["ratios"], draws["places"], strict=True)
    crops = np.stack([random_resized_crop(*part, size=12) for part in parts])
    np.testing.assert_array_equal(trained, flip(crops, draws["flipped"]))
    evaluated = transform.prepare({"inputs": images}, {})["inputs"]
    np.testing.assert_array_equal(evaluated[1], center_crop(images[1], size=16, shorter_side=20))
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    read = transform.read([str(tmp_path / "one.png")], {"inputs": (16, 16, 3)})["inputs"]
    np.testing.assert_array_equal(read[0], evaluated[0])
