"""Random erasing, mixup and cutmix of a batch: pixels, labels, draws, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxdl.data import ImageRows, Images
from flaxdl.data.batch_augmentation import cutmix, cutmix_box, mask_bands, mixup, random_erasing
from flaxdl.errors import UserError

pytestmark = pytest.mark.quick


def a_batch(count=8, height=16, width=12, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "inputs": jnp.asarray(rng.normal(size=(count, height, width, channels)), jnp.float32),
        "label": jnp.arange(count, dtype=jnp.int32),
        "weight": jnp.ones(count, jnp.float32),
    }


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def box_of(fraction, center, height, width):
    """The rectangle of torchvision's CutMix, in Python numbers: left and right, then rows."""
    r = 0.5 * np.sqrt(1 - fraction)
    r_w, r_h = int(r * width), int(r * height)
    r_y, r_x = int(center[0] * height), int(center[1] * width)
    x1, x2 = max(r_x - r_w, 0), min(r_x + r_w, width)
    y1, y2 = max(r_y - r_h, 0), min(r_y + r_h, height)
    return y1, x1, y2, x2


def test_the_rectangle_of_cutmix_is_that_of_torchvision():
    rng = np.random.default_rng(0)
    fractions = np.float32(rng.random(200))
    centers = np.float32(rng.random((200, 2)))
    boxes = jax.vmap(lambda f, c: jnp.stack(cutmix_box(f, c, height=37, width=20)))(
        fractions, centers
    )
    expected = [
        box_of(float(f), c.astype(float), 37, 20) for f, c in zip(fractions, centers, strict=True)
    ]
    np.testing.assert_array_equal(boxes, expected)
    assert cutmix_box(jnp.float32(1), jnp.float32([0.5, 0.5]), height=8, width=8) == (4, 4, 4, 4)


@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_images_are_mixed_as_their_labels_say(mixing):
    batch = a_batch()
    images = np.asarray(batch["inputs"])
    previous = np.roll(images, 1, axis=0)
    mix_one = jax.jit(lambda key: mixing(batch, key, alpha=1.0))
    seen = set()
    for key in keys(12):
        new = jax.device_get(mix_one(key))
        assert np.all((new["mix"] >= 0.5) & (new["mix"] <= 1))
        assert new["mix"].dtype == np.float32
        own_is_larger = bool(new["label"][0] == batch["label"][0])
        first, second = (images, previous) if own_is_larger else (previous, images)
        labels = [batch["label"], np.roll(batch["label"], 1)]
        larger, smaller = labels if own_is_larger else labels[::-1]
        np.testing.assert_array_equal(new["label"], larger)
        np.testing.assert_array_equal(new["label_2"], smaller)
        mix = new["mix"][:, None, None, None]
        if mixing is mixup:
            np.testing.assert_allclose(new["inputs"], mix * first + (1 - mix) * second, atol=1e-6)
        else:
            is_first = (new["inputs"] == first).all(-1)
            is_second = (new["inputs"] == second).all(-1)
            assert np.all(is_first ^ is_second)
            np.testing.assert_allclose(is_first.mean((1, 2)), new["mix"], atol=1e-6)
            rows, columns = np.nonzero(is_second[0] if own_is_larger else is_first[0])
            if rows.size:  # one rectangle
                assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        seen.add(own_is_larger)
        assert set(new) == {*batch, "label_2", "mix"}
    assert seen == {True, False}


@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_the_fraction_has_the_distribution_beta(mixing):
    batch = a_batch(2, 32, 32, 1)
    for alpha in (0.2, 1.0):
        mix_one = partial(mixing, batch, alpha=alpha)
        mixes = jax.jit(jax.vmap(mix_one))(keys(4000))["mix"][:, 0]
        if mixing is mixup:
            fractions = np.random.default_rng(0).beta(alpha, alpha, 100_000)
            expected = np.quantile(np.maximum(fractions, 1 - fractions), [0.25, 0.5, 0.75])
            np.testing.assert_allclose(np.quantile(mixes, [0.25, 0.5, 0.75]), expected, atol=0.02)
        else:  # clipping at the borders makes rectangles smaller
            assert 0.6 < np.mean(mixes) < 1
            assert len(np.unique(mixes)) > 100


@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_examples_without_weight_are_not_mixed(mixing):
    batch = a_batch(6)
    batch["weight"] = batch["weight"].at[2].set(0)
    batch["inputs"] = batch["inputs"].at[2].set(np.nan)
    for key in keys(4):
        new = mixing(batch, key, alpha=1.0)
        for place in (2, 3):  # itself, and the one that it would be mixed into
            np.testing.assert_array_equal(new["inputs"][place], batch["inputs"][place])
            assert (new["label"][place], new["mix"][place]) == (place, 1)
        assert np.isfinite(np.asarray(new["inputs"])[[0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_weights_are_mixed_like_the_examples(mixing):
    batch = a_batch(6) | {"weight": jnp.array([1.0, 2.0, 0.0, 0.5, 3.0, 1.0])}
    for key in keys(4):
        new = mixing(batch, key, alpha=1.0)
        weight, mix = np.asarray(batch["weight"]), np.asarray(new["mix"])
        expected = mix * weight[new["label"]] + (1 - mix) * weight[new["label_2"]]
        expected = np.where(mix == 1, weight, expected)  # not mixed, or with itself
        np.testing.assert_allclose(new["weight"], expected, rtol=1e-6)
        equal = mixing(batch | {"weight": jnp.full(6, 0.3)}, key, alpha=1.0)
        np.testing.assert_array_equal(equal["weight"], np.full(6, 0.3, np.float32))


def test_erased_rectangles_have_the_sizes_of_torchvision():
    images = 1 + jnp.abs(a_batch(1, 64, 48)["inputs"])
    erase = jax.jit(jax.vmap(lambda key: random_erasing(images, key, probability=0.25)[0]))
    erased = np.asarray(erase(keys(2000)))
    is_erased = erased == 0
    np.testing.assert_array_equal(np.where(is_erased, 0, erased), np.where(is_erased, 0, images))
    np.testing.assert_array_equal(is_erased.any(-1), is_erased.all(-1))
    counts = is_erased[..., 0].sum((1, 2))
    assert 0.22 < np.mean(counts > 0) < 0.28
    heights = is_erased[..., 0].any(2).sum(1)[counts > 0]
    widths = is_erased[..., 0].any(1).sum(1)[counts > 0]
    counts = counts[counts > 0]
    np.testing.assert_array_equal(counts, heights * widths)  # one rectangle
    areas = counts / (64 * 48)
    assert 0.015 < areas.min() < 0.04
    assert 0.28 < areas.max() < 0.34
    np.testing.assert_allclose(np.mean(areas), (0.02 + 0.33) / 2, atol=0.02)
    ratios = heights / widths
    assert 0.25 < ratios.min() < 0.45
    assert 2.4 < ratios.max() < 3.6
    assert abs(np.mean(np.log(ratios))) < 0.1  # wide as often as high
    # Rectangles reach every border.
    everywhere = is_erased[..., 0].mean(0)
    for border in (everywhere[0], everywhere[-1], everywhere[:, 0], everywhere[:, -1]):
        assert border.max() > 0
    np.testing.assert_allclose(everywhere, everywhere[::-1, ::-1], atol=0.03)


def test_small_and_narrow_images_are_erased_or_left_as_they_are():
    for height, width in ((1, 1), (1, 20), (3, 2)):
        images = jnp.ones((4, height, width, 1))
        erased = random_erasing(images, jax.random.key(0), probability=1.0)
        assert erased.shape == images.shape
        assert (np.asarray(erased).sum((1, 2, 3)) > 0).all()  # never the whole image


def test_every_image_has_its_own_rectangle_but_a_batch_has_one_proportion():
    batch = a_batch(16)
    transform = Images(random_erasing=1.0, mixup_alpha=0.4)
    erased = random_erasing(batch["inputs"], jax.random.key(1), probability=1.0)
    masks = np.asarray(erased == 0)[..., 0].reshape(16, -1)
    assert len(np.unique(masks, axis=0)) == 16
    assert len(np.unique(transform.augment_batch(batch, jax.random.key(2))["mix"])) == 1


def test_each_batch_gets_mixup_or_cutmix_at_random():
    batch = a_batch(2, 8, 8, 1)
    transform = Images(mixup_alpha=1.0, cutmix_alpha=1.0)
    results = jax.jit(jax.vmap(lambda key: transform.augment_batch(batch, key)["inputs"]))(
        keys(400)
    )
    originals = np.asarray(batch["inputs"])
    is_cut = ((results == originals) | (results == originals[::-1])).all((1, 2, 3, 4))
    assert 0.42 < is_cut.mean() < 0.58


def test_without_settings_the_batch_is_unchanged():
    batch = a_batch()
    assert Images().augment_batch(batch, jax.random.key(0)) is batch


def test_rows_are_blended():
    batch = a_batch(channels=1)
    batch["inputs"] = ImageRows().normalize(batch["inputs"])
    new = ImageRows(mixup_alpha=1.0).augment_batch(batch, jax.random.key(3))
    assert new["inputs"].shape == batch["inputs"].shape
    assert 0.5 <= new["mix"][0] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random_erasing": 1.5}, "random_erasing must be a number, from 0 to 1, got 1.5"),
        ({"random_erasing": "often"}, "random_erasing must be a number, from 0 to 1, got 'often'"),
        ({"mixup_alpha": -0.1}, "mixup_alpha must be a number, 0 or above, got -0.1"),
        ({"mixup_alpha": float("nan")}, "mixup_alpha must be a number, 0 or above, got nan"),
        ({"cutmix_alpha": float("inf")}, "cutmix_alpha must be a number, 0 or above, got inf"),
        ({"cutmix_alpha": True}, "cutmix_alpha must be a number, 0 or above, got True"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Images(**settings)


@pytest.mark.parametrize("name", ["random_erasing", "cutmix_alpha"])
def test_rows_have_no_rectangles(name):
    with pytest.raises(UserError, match=rf"{name} must be 0 for ImageRows.*got 0\.5"):
        ImageRows(**{name: 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, r"as integers \[8\], or several, .*; got none"),
        (
            {"label": jnp.zeros((8, 2), jnp.int32)},
            r"as integers \[8\], or several, .*; got int32\[8, 2\]",
        ),
        ({"label": jnp.zeros(8)}, r"as integers \[8\], or several, .*; got float32\[8\]"),
        ({"inputs": jnp.zeros((1, 4, 4, 1))}, r"at least 2 per step .* got 1"),
    ],
)
def test_batches_that_cannot_be_mixed_are_named(changes, message):
    batch = {name: x for name, x in (a_batch() | changes).items() if x is not None}
    with pytest.raises(UserError, match=message):
        Images(mixup_alpha=0.2).augment_batch(batch, jax.random.key(0))


@pytest.mark.parametrize("axis", [1, 2])
def test_masked_bands_have_all_widths_and_places(axis):
    images = jnp.ones((4000, 7, 7, 2))
    mask = jax.jit(lambda key, count: mask_bands(images, key, axis=axis, count=count, width=3),
                   static_argnums=1)  # fmt: skip
    masked = np.asarray(mask(jax.random.key(0), 1)) == 0
    lines = masked.all(axis=(3 - axis, 3))  # [B, 7]
    np.testing.assert_array_equal(masked.any(axis=(3 - axis, 3)), lines)  # of the whole width
    widths = lines.sum(axis=1)
    np.testing.assert_allclose(np.bincount(widths) / 4000, [0.25] * 4, atol=0.03)
    starts = lines[widths == 3].argmax(axis=1)
    assert np.all(lines[widths == 3].sum(axis=1) == 3)
    np.testing.assert_allclose(np.bincount(starts) / len(starts), [0.2] * 5, atol=0.05)
    np.testing.assert_allclose(
        np.bincount(lines[widths == 1].argmax(axis=1)) / 1000, 1 / 7, atol=0.04
    )
    assert (np.asarray(mask(jax.random.key(0), 2)) == 0).mean() > 1.5 * masked.mean()
    assert mask_bands(images, jax.random.key(0), axis=axis, count=0, width=3) is images
