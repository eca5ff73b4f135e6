"""Augmentation of normalized batches on the device: erasing, masking, mixup and cutmix.

B: images in a batch, H: height, W: width, C: channels.

Mixup and cutmix combine each image with the previous one of its batch, the first with the last. A
mixed example has two classes instead of a vector of K probabilities: `label`, the class of the
larger part, `label_2`, that of the other part, and `mix`, float32[B] in [0.5, 1], the fraction of
the larger part. Its loss is `mix * loss(label) + (1 - mix) * loss(label_2)`, which is the
cross-entropy with the mixed probabilities, also with label smoothing. The weight of a mixed example
is that of its parts, mixed alike. Labels of several classes, [B, K], are mixed in the same way.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.errors import UserError

Batch = Mapping[str, jax.Array]
_AREAS = (0.02, 0.33)  # of an erased rectangle, as a fraction of the image
_ASPECT_RATIOS = (0.3, 3.3)
_ATTEMPTS = 10  # to find a rectangle that fits into the image


def random_erasing(images: jax.Array, key: jax.Array, *, probability: float) -> jax.Array:
    """Sets a random rectangle of some images to zero, the mean of normalized images.

    As in torchvision's `RandomErasing`, the rectangle has 2 % to 33 % of the area, and an aspect
    ratio from 0.3 to 3.3. Zhong et al., https://arxiv.org/abs/1708.04896.

    Args:
        images: normalized images, [B, H, W, C].
        key: random key.
        probability: probability that an image is erased.
    """
    B, H, W, _ = images.shape
    keys = jax.random.split(key, 4)
    areas = H * W * _uniform(keys[0], (B, _ATTEMPTS), *_AREAS)
    low, high = map(math.log, _ASPECT_RATIOS)
    ratios = jnp.exp(_uniform(keys[1], (B, _ATTEMPTS), low, high))
    heights = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (heights < H) & (widths < W)  # [B, attempts]
    first = jnp.argmax(fits, axis=1)[:, None]
    height = jnp.take_along_axis(heights, first, axis=1)[:, 0]
    width = jnp.take_along_axis(widths, first, axis=1)[:, 0]
    places = _uniform(keys[2], (2, B))
    top = (places[0] * (H - height + 1)).astype(jnp.int32)
    left = (places[1] * (W - width + 1)).astype(jnp.int32)
    is_erased = (_uniform(keys[3], (B,)) < probability) & jnp.any(fits, axis=1)
    inside = _rectangles(images, top, left, top + height, left + width)
    return jnp.where(inside & is_erased[:, None, None, None], 0, images)


def mask_bands(
    images: jax.Array, key: jax.Array, *, axis: int, count: int, width: int
) -> jax.Array:
    """Sets random bands of rows or columns to zero, the mean of normalized images.

    The width of each band is drawn from 0 to `width`, then its position, as in SpecAugment. Bands
    may overlap. Park et al., https://arxiv.org/abs/1904.08779.

    Args:
        images: normalized images, [B, H, W, C].
        key: random key.
        axis: 1 for bands of rows, 2 for bands of columns.
        count: number of bands per image; 0 returns the images unchanged.
        width: maximum width of a band.

    Raises:
        UserError: if a band can be wider than the images.
    """
    if not count:
        return images
    B, size = images.shape[0], images.shape[axis]
    if width > size:
        raise UserError(f"masked bands must fit into {size} rows or columns, got width {width}")
    width_key, place_key = jax.random.split(key)
    widths = (_uniform(width_key, (B, count, 1)) * (width + 1)).astype(jnp.int32)
    starts = (_uniform(place_key, (B, count, 1)) * (size - widths + 1)).astype(jnp.int32)
    places = jnp.arange(size)
    is_masked = jnp.any((places >= starts) & (places < starts + widths), axis=1)  # [B, size]
    shape = (B, size, 1, 1) if axis == 1 else (B, 1, size, 1)
    return jnp.where(is_masked.reshape(shape), 0, images)


def mixup(batch: Batch, key: jax.Array, *, alpha: float) -> Batch:
    """Blends each image with the previous one of its batch.

    The result is `fraction * image + (1 - fraction) * previous`. One fraction per batch is drawn
    from Beta(alpha, alpha). Zhang et al., https://arxiv.org/abs/1710.09412.

    Args:
        batch: `inputs` [B, ...], `label` int[B] and `weight` [B].
        key: random key.
        alpha: concentration, above 0.

    Returns:
        The batch with mixed `inputs` and `weight`, `label`, `label_2` and `mix`.
    """
    fraction = _fraction(key, alpha)
    images = batch["inputs"]
    weight = fraction.astype(images.dtype)
    mixed = weight * images + (1 - weight) * jnp.roll(images, 1, axis=0)
    return _mixed(batch, mixed, fraction)


def cutmix(batch: Batch, key: jax.Array, *, alpha: float) -> Batch:
    """Pastes a rectangle of the previous image of the batch into each image.

    One rectangle per batch is drawn, with a uniformly distributed center. Its area before clipping
    at the borders is 1 minus a fraction drawn from Beta(alpha, alpha).
    Yun et al., https://arxiv.org/abs/1905.04899.

    Args:
        batch: `inputs` [B, H, W, C], `label` int[B] and `weight` [B].
        key: random key.
        alpha: concentration, above 0.

    Returns:
        The batch with mixed `inputs` and `weight`, `label`, `label_2` and `mix`.
    """
    images = batch["inputs"]
    _, H, W, _ = images.shape
    fraction_key, center_key = jax.random.split(key)
    center = _uniform(center_key, (2,))
    box = cutmix_box(_fraction(fraction_key, alpha), center, height=H, width=W)
    top, left, bottom, right = (jnp.asarray(side)[None] for side in box)
    inside = _rectangles(images, top, left, bottom, right)
    mixed = jnp.where(inside, jnp.roll(images, 1, axis=0), images)
    area = ((bottom - top) * (right - left))[0]
    return _mixed(batch, mixed, 1 - area.astype(jnp.float32) / (H * W))


def cutmix_box(
    fraction: jax.Array, center: jax.Array, *, height: int, width: int
) -> tuple[jax.Array, ...]:
    """Returns top, left, bottom and right (exclusive) of a rectangle, clipped to the image.

    The same as in torchvision's `CutMix`.

    Args:
        fraction: fraction of the area outside the rectangle, before clipping.
        center: row and column of the center, as fractions of the image in [0, 1), [2].
        height: height of the image.
        width: width of the image.
    """
    side = 0.5 * jnp.sqrt(1 - fraction)
    sizes = np.array([height, width])
    middle = (center * sizes).astype(jnp.int32)
    half = (side * sizes).astype(jnp.int32)
    starts = jnp.maximum(middle - half, 0)
    ends = jnp.minimum(middle + half, sizes)
    return starts[0], starts[1], ends[0], ends[1]


def check_mixable(batch: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> None:
    """Checks that mixup and cutmix can be applied to a batch.

    Raises:
        UserError: if it has less than two examples, or if labels are not classes.
    """
    count = batch["inputs"].shape[0]
    if count < 2:
        raise UserError(
            "mixup_alpha and cutmix_alpha mix the examples of a batch, which must have at least 2 "
            f"per step (divided by accumulate_steps, and by the devices under pmap), got {count}"
        )
    label = batch.get("label")
    kinds = {1: "iu", 2: "f"}  # of dtypes, by rank
    if label is None or label.dtype.kind not in kinds.get(label.ndim, ""):
        got = "none" if label is None else f"{label.dtype}{list(label.shape)}"
        raise UserError(
            "mixup_alpha and cutmix_alpha need classes as labels, one per example, as integers "
            f"[{count}], or several, as floating-point numbers [{count}, K]; got {got}"
        )


def _fraction(key: jax.Array, alpha: float) -> jax.Array:
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _mixed(batch: Batch, mixed: jax.Array, fraction: jax.Array) -> Batch:
    """Returns a batch with mixed inputs, of which `fraction` is from the example itself.

    Examples of weight 0, such as replacements of unreadable files, are not mixed into others.
    """
    label, weight = batch["label"], batch["weight"]
    other, other_weight = jnp.roll(label, 1, axis=0), jnp.roll(weight, 1)
    counts = (weight > 0) & (other_weight > 0)  # [B]
    fraction = jnp.where(counts, fraction, 1)
    is_mixed = counts.reshape(-1, *(1,) * (mixed.ndim - 1))
    inputs = jnp.where(is_mixed, mixed, batch["inputs"])
    is_larger = (fraction >= 0.5).reshape(-1, *(1,) * (label.ndim - 1))
    return {
        **batch,
        "inputs": inputs,
        "label": jnp.where(is_larger, label, other),
        "label_2": jnp.where(is_larger, other, label),
        "mix": jnp.maximum(fraction, 1 - fraction),
        "weight": weight + (1 - fraction) * (other_weight - weight),  # exact for equal weights
    }


def _rectangles(
    images: jax.Array, top: jax.Array, left: jax.Array, bottom: jax.Array, right: jax.Array
) -> jax.Array:
    """Returns which pixels are inside the rectangles, bool[n, H, W, 1], given their sides, [n]."""
    _, H, W, _ = images.shape
    rows, columns = jnp.arange(H), jnp.arange(W)
    is_row = (rows >= top[:, None]) & (rows < bottom[:, None])
    is_column = (columns >= left[:, None]) & (columns < right[:, None])
    return is_row[:, :, None, None] & is_column[:, None, :, None]


def _uniform(
    key: jax.Array, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0
) -> jax.Array:
    # Of a fixed dtype, so that the draws do not depend on jax_enable_x64.
    return jax.random.uniform(key, shape, jnp.float32, low, high)
