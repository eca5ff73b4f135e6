import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from flaxdl.data import ImageRows, Images, Transform
from flaxdl.data.augmentation import crop, flip, rotate
from flaxdl.data.dataset import ArrayDataset
from flaxdl.data.image_files import read_image
from flaxdl.data.images import grayscale, normalize
from flaxdl.data.resizing import ATTEMPTS, center_crop, random_resized_crop, resize, resize_to_cover

batches = st.tuples(
    st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.sampled_from([1, 3])
).flatmap(lambda shape: arrays(np.uint8, shape))
quick = settings(max_examples=40, deadline=None)


def image(rows, dtype=np.uint8):
    return np.array(rows, dtype)[None, :, :, None]


def test_crop_moves_the_image_and_fills_with_zeros():
    square = image([[1, 2], [3, 4]])
    moved = crop(np.concatenate([square] * 3), np.array([[1, 1], [0, 0], [1, 2]]), padding=1)
    np.testing.assert_array_equal(moved[0, :, :, 0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(moved[1, :, :, 0], [[0, 0], [0, 1]])
    np.testing.assert_array_equal(moved[2, :, :, 0], [[2, 0], [4, 0]])


def test_flip_mirrors_the_chosen():
    flipped = flip(np.concatenate([image([[1, 2, 3]])] * 2), np.array([True, False]))
    np.testing.assert_array_equal(flipped[:, 0, :, 0], [[3, 2, 1], [1, 2, 3]])


def test_rotate_by_right_angles():
    square = image([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    turned = rotate(np.concatenate([square] * 4), np.array([0.0, 90.0, 180.0, -90.0]))
    for quarter_turns, result in enumerate(turned):
        np.testing.assert_array_equal(result, np.rot90(square[0], quarter_turns))


def test_rotate_interpolates_between_four_pixels():
    # Turned by 45 degrees, the corner (-0.5, -0.5) of 2x2 comes from (0, -0.7071): halfway
    # between the columns, 0.2071 of the way from the upper row to the zeros above it.
    turned = rotate(image([[100, 60], [20, 40]], np.float32), np.array([45.0]))
    near = (np.sqrt(0.5) - 0.5) * 0 + (1 - (np.sqrt(0.5) - 0.5)) * 0.5
    expected = [[near * (100 + 60), near * (60 + 40)], [near * (100 + 20), near * (20 + 40)]]
    np.testing.assert_allclose(turned[0, :, :, 0], expected, rtol=1e-5)


def test_rotate_rounds_integers_to_the_nearest():
    exact = rotate(image([[100, 60], [20, 41]], np.float32), np.array([45.0]))
    rounded = rotate(image([[100, 60], [20, 41]]), np.array([45.0]))
    np.testing.assert_array_equal(rounded, np.rint(exact).astype(np.uint8))


@given(batches)
@quick
def test_crop_without_padding_is_the_identity(images):
    offsets = np.zeros((len(images), 2), int)
    np.testing.assert_array_equal(crop(images, offsets, padding=0), images)


@given(batches, st.integers(1, 4))
@quick
def test_crop_at_the_centre_is_the_identity(images, padding):
    offsets = np.full((len(images), 2), padding)
    np.testing.assert_array_equal(crop(images, offsets, padding=padding), images)


@given(batches, st.data())
@quick
def test_flip_twice_is_the_identity_and_once_keeps_the_pixels(images, data):
    chosen = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(images), max_size=len(images)))
    )
    once = flip(images, chosen)
    np.testing.assert_array_equal(flip(once, chosen), images)
    np.testing.assert_array_equal(
        np.sort(once.reshape(len(images), -1)), np.sort(images.reshape(len(images), -1))
    )


@given(batches)
@quick
def test_rotate_by_nothing_is_the_identity(images):
    np.testing.assert_array_equal(rotate(images, np.zeros(len(images))), images)


@given(batches, st.floats(-180, 180))
@quick
def test_rotate_never_exceeds_the_brightest_pixel(images, degrees):
    assert rotate(images, np.full(len(images), degrees)).max() <= images.max()


@given(batches, st.integers(0, 2**32 - 1))
@quick
def test_augmentation_leaves_its_input_alone(images, seed):
    transform = Images(crop_padding=2, flip=True, rotation=30.0)
    before = images.copy()
    draws = transform.draw(np.random.default_rng(seed), len(images))
    augmented = transform.prepare({"inputs": images, "label": np.arange(len(images))}, draws)
    np.testing.assert_array_equal(images, before)
    assert augmented["inputs"].shape == images.shape
    assert augmented["inputs"].dtype == images.dtype


def test_draws_cover_their_range():
    draws = Images(crop_padding=2, flip=True, rotation=30.0).draw(np.random.default_rng(0), 2000)
    assert set(draws["offsets"].ravel()) == {0, 1, 2, 3, 4}
    assert 0.45 < draws["flipped"].mean() < 0.55
    assert -30 <= draws["degrees"].min() < -29
    assert 29 < draws["degrees"].max() <= 30
    assert Images().draw(np.random.default_rng(0), 5) == {}


def test_normalize_scales_bytes_first():
    images = jnp.array([[[[0, 255]]]], jnp.uint8)
    normalized = jax.jit(lambda x: normalize(x, (0.5, 0.25), (0.5, 0.125)))(images)
    assert normalized.dtype == jnp.float32
    np.testing.assert_allclose(normalized[0, 0, 0], [-1.0, 6.0])


def test_normalize_takes_floats_as_they_are():
    normalized = normalize(jnp.full((1, 1, 1, 3), 4.0), (1.0,), (2.0,))
    np.testing.assert_array_equal(normalized[0, 0, 0], [1.5, 1.5, 1.5])


def test_normalize_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match=r"mean must have 1 value or one per channel \(1\)"):
        Images(mean=(0.4, 0.5, 0.6)).normalize(jnp.zeros((1, 2, 2, 1)))


def test_read_resizes_with_antialiasing(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (8, 4))  # 8x8, columns black and white
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    pixels = Images().read([str(tmp_path / "stripes.png")], {"inputs": (2, 2, 1)})["inputs"]
    assert pixels.shape == (1, 2, 2, 1)
    assert np.abs(pixels.astype(int) - 127).max() < 25  # without: 0 or 255


def test_read_distorts_nothing(tmp_path):
    """Without a size, an image covers the training images' size, and its middle is taken."""
    columns = np.repeat(np.array([[0] * 8 + [100] * 8 + [200] * 8], np.uint8), 8, axis=0)
    for name, pixels in (("wide", columns), ("tall", columns.T)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        read = Images().read([str(tmp_path / f"{name}.png")], {"inputs": (4, 4, 1)})["inputs"]
        np.testing.assert_allclose(read, np.full((1, 4, 4, 1), 100), atol=35)
        assert (read[0, 1:3, 1:3] == 100).all()
    same = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resize_to_cover(same, 4, 4), same)
    assert resize_to_cover(gradient(30, 47), 15, 11).shape == (15, 11, 3)
    np.testing.assert_array_equal(
        resize_to_cover(gradient(30, 40), 15, 20), resize(gradient(30, 40), 15, 20)
    )


@pytest.mark.parametrize(
    ("scale", "levels"),
    [
        (lambda x: x / 255, None),
        (lambda x: x.astype(np.float32), (0, 255)),
        (lambda x: x * (16 / 255), (0, 16)),
        (lambda x: x * (15 / 255), (0, 15)),
        (lambda x: x / 127.5 - 1, (-1, 1)),
        (lambda x: x * 257.0, (0, 65535)),
    ],
)
@pytest.mark.parametrize("size", [None, 4])
def test_files_are_brought_to_the_scale_of_images_that_are_floats(tmp_path, scale, levels, size):
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), dtype=np.uint8)
    images[:2] = np.array([0, 255]).reshape(2, 1, 1, 1)
    Image.fromarray(images[3, ..., 0]).save(tmp_path / "one.png")
    floats = scale(images).astype(np.float32)
    transform = Images(mean=(0.4,), std=(0.3,), size=size)
    fitted = transform.fit(ArrayDataset({"inputs": floats}))
    assert fitted.levels == levels
    assert fitted == transform
    fitted.save(tmp_path)
    assert (tmp_path / "images.json").exists() == (levels is not None)
    restored = transform.restore(tmp_path)
    read = restored.read([str(tmp_path / "one.png")], {"inputs": (4, 4, 1)})["inputs"]
    np.testing.assert_allclose(
        restored.normalize(jnp.asarray(read)),
        transform.normalize(jnp.asarray(floats[3:4])),
        rtol=1e-5,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("low", "high", "levels"),
    [(-0.02, 1.02, None), (-9, 260, (0, 255)), (-1.05, 1.1, (-1, 1)), (0, 4000, (0, 4095))],
)
def test_interpolation_may_go_beyond_black_and_white(low, high, levels, caplog):
    images = np.linspace(low, high, 32, dtype=np.float32).reshape(2, 4, 4, 1)
    assert Images().fit(ArrayDataset({"inputs": images})).levels == levels
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (-0.5, 0.5),  # divided by 255 and moved by a half
        (-0.13, 0.87),  # moved by the mean
        (-0.42, 2.82),  # standardized digits
        (-0.8, 3.0),
        (0, 300),
    ],
)
def test_scales_that_cannot_be_told_are_not_guessed(low, high, caplog):
    images = np.linspace(low, high, 32, dtype=np.float32).reshape(2, 4, 4, 1)
    assert Images().fit(ArrayDataset({"inputs": images})).levels is None
    assert "unknown scale" in caplog.text


def test_levels_of_other_data_do_not_stay(tmp_path):
    bright = np.linspace(0, 255, 32, dtype=np.float32).reshape(2, 4, 4, 1)
    Images().fit(ArrayDataset({"inputs": bright})).save(tmp_path)
    Images().fit(ArrayDataset({"inputs": bright / 255})).save(tmp_path)
    assert Images().restore(tmp_path).levels is None


def test_floats_without_black_and_white_are_named(caplog):
    images = np.random.default_rng(0).normal(size=(50, 4, 4, 1))
    fitted = Images().fit(ArrayDataset({"inputs": images}, {"inputs": "train_inputs"}))
    assert fitted.levels is None
    assert "train_inputs (float64, -" in caplog.text
    assert "unknown scale; predictions for image files assume 0 to 1" in caplog.text


def test_damaged_levels_are_named(tmp_path):
    for text in ("", "[]", '{"levels": [1]}', '{"levels": ["a", 2]}', '{"levels": null}'):
        (tmp_path / "images.json").write_text(text)
        with pytest.raises(ValueError, match="images.json cannot be read"):
            Images().restore(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "white"),
    [(np.uint8, 255), (np.int16, 255), (np.int32, 255), (np.uint16, 65535), (np.bool_, 1)],
)
def test_integers_are_in_units_of_full_brightness(dtype, white):
    images = np.array([0, white], dtype).reshape(1, 1, 2, 1)
    for array in (images, jnp.asarray(images)):
        normalized = np.ravel(normalize(array, (0.5,), (0.25,)))
        assert normalized.dtype == np.float32
        np.testing.assert_allclose(normalized, [-2, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"std": (0.5, 0.0, 0.5)}, r"std must be above 0, got \(0.5, 0.0, 0.5\)"),
        ({"std": (-1.0,)}, "std must be above 0"),
        ({"std": (float("nan"),)}, "std must be finite numbers"),
        ({"mean": (float("inf"),)}, "mean must be finite numbers"),
        ({"mean": ()}, "mean must be finite numbers"),
    ],
)
def test_no_division_by_zero(settings, message):
    with pytest.raises(ValueError, match=message):
        Images(**settings)


def test_read_converts_to_the_channels_asked_for(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    batch = Images().read([str(tmp_path / "red.png")] * 2, {"inputs": (4, 4, 3)})
    np.testing.assert_array_equal(batch["inputs"], np.full((2, 4, 4, 3), [255, 0, 0]))
    gray = Images().read([str(tmp_path / "red.png")], {"inputs": (4, 4, 1)})
    np.testing.assert_array_equal(gray["inputs"], np.full((1, 4, 4, 1), 76))  # 0.299 * 255


def test_read_turns_a_photograph_upright(tmp_path):
    photograph = Image.fromarray(np.array([[10, 200]], np.uint8))
    exif = photograph.getexif()
    exif[0x0112] = 6  # orientation: to be turned 90 degrees clockwise
    photograph.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", 1)[:, 0, 0], [10, 200])


def test_broken_and_missing_images_are_named(tmp_path):
    Image.new("L", (64, 64), 7).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name, reason in [
        ("cut.png", "cut.png cannot be read as an image"),
        ("text.png", "text.png cannot be read as an image"),
        ("absent.png", "no such image file: .*absent.png"),
    ]:
        with pytest.raises(ValueError, match=reason):
            Images().read([str(tmp_path / name)], {"inputs": (8, 8, 1)})
    with pytest.raises(ValueError, match="1 or 3 channels, but the model takes 2"):
        read_image(tmp_path / "cut.png", 2)


def test_the_plain_transform_reads_arrays(tmp_path):
    np.save(tmp_path / "series.npy", np.arange(6.0).reshape(3, 2))
    batch = Transform().read([str(tmp_path / "series.npy")], {"inputs": (3, 2)})
    np.testing.assert_array_equal(batch["inputs"], np.arange(6.0).reshape(1, 3, 2))
    with pytest.raises(ValueError, match=r"series.npy must contain .* \(4, 2\), got \(3, 2\)"):
        Transform().read([str(tmp_path / "series.npy")], {"inputs": (4, 2)})
    with pytest.raises(ValueError, match=r"absent.npy cannot be read as a .npy file"):
        Transform().read([str(tmp_path / "absent.npy")], {"inputs": (4, 2)})


def gradient(height, width, channels=3):
    """An image that grows brighter downwards and to the right."""
    y, x = np.mgrid[:height, :width]
    return np.repeat((3 * y + 2 * x).astype(np.uint8)[..., None], channels, axis=-1)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (33, 47), (20, 20), (90, 20)])
def test_the_centre_is_that_of_torchvision(height, width):
    # torchvision: Resize(24) makes the longer side int(24 * long / short), CenterCrop(16) begins
    # at int(round((side - 16) / 2)).
    image = gradient(height, width)
    short, long = sorted((height, width))
    longer = int(24 * long / short)
    size = (longer, 24) if width > height else (24, longer)
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    top, left = (round((side - 16) / 2) for side in resized.shape[:2])
    np.testing.assert_array_equal(
        center_crop(image, size=16, shorter_side=24), resized[top : top + 16, left : left + 16]
    )


def part(image, areas, ratios, place, size=8):
    pad = [1.0] * (ATTEMPTS - len(areas))
    return random_resized_crop(
        image, np.array(areas + pad), np.array(ratios + pad), np.array(place), size=size
    )


def test_a_random_resized_crop_has_the_area_ratio_and_place_that_were_drawn():
    image = gradient(32, 32)
    # A quarter of 1024 pixels with ratio 1 is 16 x 16; there are 17 places each way.
    expected = resize(image[16:32, 8:24], 8, 8)
    np.testing.assert_array_equal(part(image, [0.25], [1.0], (0.99, 0.5)), expected)
    # Half of it with ratio 2 is 16 high and 32 wide.
    np.testing.assert_array_equal(part(image, [0.5], [2.0], (0.0, 0.9)), resize(image[:16], 8, 8))


def test_what_does_not_fit_is_drawn_again_and_at_last_taken_from_the_middle():
    image = gradient(32, 32)
    again = part(image, [1.0, 0.25], [4.0, 1.0], (0.0, 0.0))
    np.testing.assert_array_equal(again, resize(image[:16, :16], 8, 8))
    never = ([1.0] * ATTEMPTS, [4 / 3] * ATTEMPTS, (0.0, 0.0))
    np.testing.assert_array_equal(part(image, *never), resize(image, 8, 8))
    wide, high = gradient(12, 40), gradient(40, 12)
    np.testing.assert_array_equal(part(wide, *never), resize(wide[:, 12:28], 8, 8))
    np.testing.assert_array_equal(part(high, *never), resize(high[12:28], 8, 8))


def images_of_sizes(*sizes, channels=3):
    images = np.empty(len(sizes), object)
    for number, (height, width) in enumerate(sizes):
        images[number] = gradient(height, width, channels)
    return images


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_become_squares(channels):
    transform = Images(size=16, resize=20, min_scale=0.1, flip=True)
    images = images_of_sizes((20, 30), (64, 25), (9, 9), channels=channels)
    draws = transform.draw(np.random.default_rng(0), 3)
    trained = transform.prepare({"inputs": images}, draws)["inputs"]
    again = transform.prepare({"inputs": images}, draws)["inputs"]
    evaluated = transform.prepare({"inputs": images}, {})["inputs"]
    assert trained.shape == evaluated.shape == (3, 16, 16, channels)
    np.testing.assert_array_equal(trained, again)
    np.testing.assert_array_equal(evaluated[1], center_crop(images[1], size=16, shorter_side=20))
    assert (trained != evaluated).any()


def test_prediction_crops_as_evaluation_does(tmp_path):
    image = gradient(30, 50)
    Image.fromarray(image).save(tmp_path / "one.png")
    read = Images(size=16, resize=20).read([str(tmp_path / "one.png")], {"inputs": (16, 16, 3)})
    np.testing.assert_array_equal(read["inputs"][0], center_crop(image, size=16, shorter_side=20))


def test_rows_are_sequences_of_vectors():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    rows = ImageRows(mean=(0.0,), std=(1.0,)).normalize(jnp.asarray(images))
    assert rows.shape == (2, 8, 18)
    np.testing.assert_allclose(rows[1, 5], images[1, 5].reshape(-1) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 8}, "resize and min_scale require size"),
        ({"size": 8, "resize": 7}, "resize must be at least size = 8, got 7"),
        ({"size": 8, "min_scale": 0.0}, r"min_scale must be in \(0, 1\], got 0.0"),
        ({}, r"images differ in size \(4 x 4, 5 x 5\); set --transform.size"),
    ],
)
def test_sizes_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Images(**settings).prepare({"inputs": images_of_sizes((4, 4), (5, 5))}, {})


def test_only_bytes_can_be_resized():
    with pytest.raises(
        ValueError, match=r"images to resize must be uint8.* got float32\[1, 4, 4\]"
    ):
        Images(size=8).prepare({"inputs": np.zeros((2, 1, 4, 4), np.float32)}, {})


def test_grayscale_is_that_of_pillow():
    colors = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colors).convert("L"))
    np.testing.assert_array_equal(grayscale(colors)[..., 0], expected)
    floats = grayscale(colors.astype(np.float32))
    np.testing.assert_allclose(floats[..., 0], expected, atol=1)
    assert floats.dtype == np.float32


def test_color_becomes_grayscale_on_the_host(tmp_path):
    transform = Images(size=8, channels=1)
    colors = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    batch = transform.prepare({"inputs": colors}, {})
    assert batch["inputs"].shape == (2, 8, 8, 1)
    expected = np.asarray(Image.fromarray(colors[1]).convert("L"))[..., None]
    np.testing.assert_array_equal(batch["inputs"][1], center_crop(expected, size=8, shorter_side=8))
    mixed = np.empty(2, object)
    mixed[:] = [colors[0], colors[1][:9, :, :1]]
    assert transform.prepare({"inputs": mixed}, {})["inputs"].shape == (2, 8, 8, 1)
    Image.fromarray(colors[1]).save(tmp_path / "one.png")
    read = transform.read([str(tmp_path / "one.png")], {"inputs": (8, 8, 1)})
    np.testing.assert_array_equal(read["inputs"][0], batch["inputs"][1])
    assert transform.normalize(jnp.asarray(read["inputs"])).shape == (1, 8, 8, 1)


def test_grayscale_is_repeated_for_a_model_of_color(tmp_path):
    transform = Images(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), size=32, channels=3)
    digits = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    batch = transform.prepare({"inputs": digits}, {})
    seen = np.asarray(transform.normalize(jnp.asarray(batch["inputs"])))
    assert seen.shape == (2, 32, 32, 3)
    levels = batch["inputs"][..., 0] / 255
    for channel, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)]):
        np.testing.assert_allclose(seen[..., channel], (levels - mean) / std, rtol=1e-5, atol=1e-6)
    # A picture in color is read as what the run was trained on: gray.
    colors = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "one.png")
    read = transform.read([str(tmp_path / "one.png")], {"inputs": batch["inputs"].shape[1:]})
    seen = np.asarray(transform.normalize(jnp.asarray(read["inputs"])))[0]
    np.testing.assert_allclose(seen[..., 0] + 0.1, 2 * seen[..., 1] + 0.2, atol=1e-6)
    already = jnp.zeros((1, 4, 4, 3), jnp.uint8)
    assert transform.normalize(already).shape == (1, 4, 4, 3)


def test_channels_are_one_or_three():
    with pytest.raises(ValueError, match="channels must be 1, 3 or None, got 2"):
        Images(channels=2)
