"""Image transforms: resizing and augmentation on the host, normalization on the device.

B: images in a batch, H: height, W: width, C: channels.
"""

import copy
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from flaxdl.checks import check_shape
from flaxdl.data.augmentation import crop, flip, rotate
from flaxdl.data.batch_augmentation import check_mixable, cutmix, mixup, random_erasing
from flaxdl.data.dataset import ArrayDataset, Dataset, rows, sample
from flaxdl.data.image_files import SUFFIXES, is_image, read_image
from flaxdl.data.image_operations import Augmentation, check_number
from flaxdl.data.resizing import ATTEMPTS, center_crop, random_resized_crop, resize_to_cover
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError
from flaxdl.filesystem.atomic import atomic_write
from flaxdl.filesystem.inputs import input_path

_LOGGER = logging.getLogger(__name__)
_FILE_NAME = "images.json"
_OVERSHOOT = 0.1  # fraction of the range by which interpolation may exceed black and white
# White in images of 4, 8, 12 and 16 bits that are stored as floats.
_WHITES = (15, 16, 255, 4095, 65535)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Computes (images - mean) / std, with one value for all channels or one per channel.

    Integers are divided by 255 first, uint16 by 65535, and booleans are 0 and 1, so that `mean` and
    `std` are relative to full brightness. Floats are not scaled.

    Raises:
        UserError: if the number of values is neither 1 nor the number of channels.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[-1]):
            raise UserError(
                f"{name} must have 1 value or one per channel ({images.shape[-1]}), "
                f"got {len(values)}"
            )
    if images.dtype.kind in "biu":
        white = {"uint16": 65535, "bool": 1}.get(images.dtype.name, 255)
        images = images.astype(np.float32) / white
    return (images - np.asarray(mean, images.dtype)) / np.asarray(std, images.dtype)


def grayscale(images: np.ndarray) -> np.ndarray:
    """Converts RGB [..., 3] to grayscale [..., 1], with the weights of ITU-R 601 and Pillow."""
    if images.dtype != np.uint8:
        return images @ np.array([[0.299], [0.587], [0.114]], images.dtype)
    red, green, blue = (images[..., channel].astype(np.int32) for channel in range(3))
    levels = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # weights times 2**16
    return levels.astype(np.uint8)[..., None]


@dataclass(frozen=True)
class Images(Transform):
    """Images [H, W, C]: resized, augmented in training, and normalized on the device.

    Arrays of booleans and of integers from 0 to 255 are converted to uint8; uint16 and floats are
    kept.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    mean: tuple[float, ...] = (0.5,)
    """Mean that is subtracted, per channel or for all channels; 1 is full brightness."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide by, per channel or for all channels."""
    size: int | None = None
    """Size of the square center crop, in pixels; None if all images have the same size. Training
    may use another one, `train_size`."""
    resize: int | None = None
    """Size of the shorter side, in pixels, before the center crop; `size` by default."""
    min_scale: float | None = None
    """Minimum area of random resized crops in training, as a fraction of the image (the lower end
    of torchvision's `scale`); None trains on center crops."""
    channels: int | None = None
    """Number of channels: 1 converts to grayscale, 3 repeats grayscale images; None keeps them."""
    rotation: float = 0.0
    """Maximum angle of random rotations in training, in degrees."""
    crop_padding: int = 0
    """Zero padding of random crops in training, in pixels; images shift by at most this much."""
    flip: bool = False
    """Flip each training image horizontally with probability 0.5."""
    train_size: int | None = None
    """Size of the random resized crops in training, in pixels; `size` by default. Training on
    smaller images than those of evaluation saves time and may raise accuracy (FixRes)."""
    augment: Augmentation = Augmentation()
    """Random operations on the cropped and flipped images in training: `TrivialAugmentWide`,
    `RandAugment` or `AutoAugment`; none by default."""
    random_erasing: float = 0.0
    """Probability of setting a random rectangle of a training image to the mean; 0 disables it."""
    mixup_alpha: float = 0.0
    """Mixup: blends training images, and their losses, in proportions drawn from Beta(alpha,
    alpha); 0 disables it. With `cutmix_alpha`, each batch gets one of the two at random."""
    cutmix_alpha: float = 0.0
    """CutMix: pastes rectangles of other training images, with areas drawn from Beta(alpha,
    alpha), and mixes the losses; 0 disables it."""
    levels: tuple[float, float] | None = field(default=None, init=False, repr=False, compare=False)
    """Black and white level of training images in floats not scaled to 0 to 1, found by `fit`;
    image files to predict are scaled to them."""

    def __post_init__(self):
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values or not np.isfinite(values).all():
                raise UserError(f"{name} must be finite numbers, got {values}")
        if min(self.std) <= 0:
            raise UserError(f"std must be above 0, got {self.std}")
        if self.size is None and (self.resize, self.min_scale) != (None, None):
            raise UserError("resize and min_scale require size, got None")
        if self.size and self.resize and self.resize < self.size:
            raise UserError(f"resize must be at least size = {self.size}, got {self.resize}")
        if self.min_scale is not None and not 0 < self.min_scale <= 1:
            raise UserError(f"min_scale must be in (0, 1], got {self.min_scale}")
        if self.train_size is not None:
            check_number("train_size", self.train_size, 1)
            if self.min_scale is None:
                raise UserError(
                    f"train_size {self.train_size} is the size of random resized crops, which "
                    "require min_scale, got None"
                )
        if not isinstance(self.augment, Augmentation):
            raise UserError(
                "augment must be TrivialAugmentWide(), RandAugment(), AutoAugment() or another "
                f"Augmentation, got {self.augment!r:.200}"
            )
        for name, most, allowed in (
            ("random_erasing", 1.0, "from 0 to 1"),
            ("mixup_alpha", sys.float_info.max, "0 or above"),
            ("cutmix_alpha", sys.float_info.max, "0 or above"),
        ):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float, np.floating))
                or not 0 <= value <= most
            ):
                raise UserError(f"{name} must be a number, {allowed}, got {value!r}")
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1, 3 or None, got {self.channels}")

    def reads_file(self, path: str) -> bool:
        """Returns True if a file is an image; see `image_files.is_image`."""
        return is_image(path)

    def fit(self, train: Dataset) -> "Images":
        """Finds the black and white levels of float images; see `levels`."""
        if not train.in_memory:
            return self
        name, images = train.name_of("inputs"), sample(train)["inputs"]
        _warn_if_channels_first(name, images)
        if images.dtype.kind != "f" or not images.size:
            return self
        low, high = float(images.min()), float(images.max())
        levels = _levels(low, high)
        if levels == (0.0, 1.0):  # the default scale
            return self
        if levels is None:
            _LOGGER.warning(
                "%s (%s, %.4g to %.4g): unknown scale; predictions for image files assume 0 to 1 "
                "and may be wrong; use uint8 or floats from 0 to 1",
                name, images.dtype, low, high,
            )  # fmt: skip
        return self._with_levels(levels)

    def apply(self, dataset: Dataset) -> Dataset:
        """Converts integers and booleans in memory to uint8.

        Raises:
            UserError: if the arrays are not images, or have integers outside 0 to 255.
        """
        if not dataset.in_memory:
            return dataset
        name, images = dataset.name_of("inputs"), dataset.gather(np.arange(1))["inputs"]
        _check_axes(name, images)
        if images.dtype.kind not in "biu" or images.dtype in (np.uint8, np.uint16):
            return dataset
        arrays = dataset.arrays()
        names = {key: dataset.name_of(key) for key in arrays}
        return ArrayDataset(arrays | {"inputs": _as_bytes(name, arrays["inputs"])}, names)

    def save(self, workdir: Path) -> None:
        """Saves `levels` to images.json; writes no file if there are none."""
        if self.levels is None:
            (workdir / _FILE_NAME).unlink(missing_ok=True)  # of other data
        else:
            with atomic_write(workdir / _FILE_NAME) as unfinished:
                unfinished.write_text(json.dumps({"levels": self.levels}) + "\n")

    def restore(self, workdir: Path) -> "Images":
        """Reads the `levels` of a run.

        Raises:
            UserError: if the file cannot be read.
        """
        path = workdir / _FILE_NAME
        if not path.exists():
            return self
        try:
            black, white = map(float, json.loads(path.read_text())["levels"])
        except (ValueError, TypeError, KeyError, OSError, RecursionError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        return self._with_levels((black, white))

    def _with_levels(self, levels: tuple[float, float] | None) -> "Images":
        fitted = copy.copy(self)
        object.__setattr__(fitted, "levels", levels)
        return fitted

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws the parameters of the enabled crops, rotations, flips and operations."""
        draws = {}
        if self.min_scale:
            draws["areas"] = rng.uniform(self.min_scale, 1, (size, ATTEMPTS))
            draws["ratios"] = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (size, ATTEMPTS)))
            draws["places"] = rng.random((size, 2))
        if self.rotation:
            draws["degrees"] = rng.uniform(-self.rotation, self.rotation, size)
        if self.crop_padding:
            draws["offsets"] = rng.integers(0, 2 * self.crop_padding + 1, (size, 2))
        if self.flip:
            draws["flipped"] = rng.random(size) < 0.5
        return draws | self.augment.draw(rng, size)

    def prepare(
        self, batch: dict[str, np.ndarray], draws: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Resizes the images, then rotates, crops, flips and augments them, in this order.

        Conversion to grayscale comes first, as in `read`. Grayscale is repeated to three channels
        in `normalize`, so that only one channel is transferred to the device.

        Raises:
            UserError: if the images have different sizes and `size` is None, or `augment` does not
                support them.
        """
        images = batch["inputs"]
        if self.channels == 1:
            images = _batch_to_grayscale(images)
        if self.size is not None:
            images = self._to_squares(images, draws)
        elif images.dtype == object:
            sizes = sorted({f"{image.shape[0]} x {image.shape[1]}" for image in images})
            raise UserError(
                f"images differ in size ({', '.join(sizes[:3])}); set --transform.size to resize "
                f"them"
            )
        check_shape("images", images, "B H W C")
        if "degrees" in draws:
            images = rotate(images, draws["degrees"])
        if "offsets" in draws:
            images = crop(images, draws["offsets"], padding=self.crop_padding)
        if "flipped" in draws:
            images = flip(images, draws["flipped"])
        if draws:
            images = self.augment.augment(images, draws)
        return batch | {"inputs": images}

    def _to_squares(
        self, images: Iterable[np.ndarray], draws: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        size = self.size or 0
        if "areas" in draws:
            size = self.train_size or size
            parts = zip(images, draws["areas"], draws["ratios"], draws["places"], strict=True)
            return np.stack([random_resized_crop(*part, size=size) for part in parts])
        shorter_side = self.resize or size
        return np.stack(
            [center_crop(image, size=size, shorter_side=shorter_side) for image in images]
        )

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Repeats grayscale to three channels if `channels` is 3, and normalizes."""
        if self.channels == 3 and inputs.shape[-1] == 1:
            inputs = inputs.repeat(3, axis=-1)
        return normalize(inputs, self.mean, self.std)

    def augment_batch(
        self, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> Mapping[str, jax.Array]:
        """Erases parts of images, then mixes them by mixup or cutmix; see `batch_augmentation`.

        Raises:
            UserError: if images are to be mixed, but the batch has less than two, or not one class
                per image.
        """
        erasing_key, choice_key, mixing_key = jax.random.split(key, 3)
        if self.random_erasing:
            images = random_erasing(batch["inputs"], erasing_key, probability=self.random_erasing)
            batch = {**batch, "inputs": images}
        if not self.mixup_alpha and not self.cutmix_alpha:
            return batch
        check_mixable(batch)
        by_mixup = partial(mixup, alpha=self.mixup_alpha)
        by_cutmix = partial(cutmix, alpha=self.cutmix_alpha)
        if not self.cutmix_alpha:
            return by_mixup(batch, mixing_key)
        if not self.mixup_alpha:
            return by_cutmix(batch, mixing_key)
        is_mixup = jax.random.bernoulli(choice_key)
        return jax.lax.cond(is_mixup, by_mixup, by_cutmix, batch, mixing_key)

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Reads image files and resizes them to the size of the training images.

        Without `size`, images of other shapes are resized to cover the training size, keeping the
        aspect ratio, and center-cropped.
        """
        H, W, C = shapes["inputs"]
        images = [read_image(input_path(item), C) for item in items]
        if self.size is not None:
            inputs = self._to_squares(images, {})
        else:
            inputs = np.stack([resize_to_cover(image, H, W) for image in images])
        if self.levels is not None:
            black, white = self.levels
            inputs = black + (white - black) / 255 * inputs.astype(np.float32)
        return {"inputs": inputs}


@dataclass(frozen=True)
class ImageRows(Images):
    """Images as sequences of rows from top to bottom, each a vector of W · C values."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("random_erasing", "cutmix_alpha"):
            if getattr(self, name):
                raise UserError(
                    f"{name} must be 0 for ImageRows, which have no rectangles, "
                    f"got {getattr(self, name)}; use mixup_alpha or Images"
                )

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Normalizes images [B, H, W, C] and reshapes them to [B, H, W * C]."""
        images = super().normalize(inputs)
        return images.reshape(*images.shape[:2], -1)


def _batch_to_grayscale(images: np.ndarray) -> np.ndarray:
    """Converts a batch to grayscale; it may be an object array of images of any size."""
    if images.dtype != object:
        return grayscale(images) if images.shape[-1] == 3 else images
    return rows([grayscale(image) if image.shape[-1] == 3 else image for image in images])


def _levels(low: float, high: float) -> tuple[float, float] | None:
    """Guesses black and white levels from the range of values; None if they match no scale."""
    if abs(low + 1) <= 2 * _OVERSHOOT and abs(high - 1) <= 2 * _OVERSHOOT:
        return -1.0, 1.0
    if high <= 1 + _OVERSHOOT:  # all images may be dark
        return (0.0, 1.0) if low >= -_OVERSHOOT else None
    for white in _WHITES:
        if (1 - 2 * _OVERSHOOT) * white <= high <= (white if white == 15 else 1.1 * white):
            return (0.0, float(white)) if low >= -_OVERSHOOT * white else None
    return None


def _warn_if_channels_first(name: str, images: np.ndarray) -> None:
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        shape = ", ".join(map(str, images.shape[1:]))
        _LOGGER.warning(
            "%s (%s) has shape [N, %s], which looks like [N, C, H, W]; images must be "
            "[N, H, W, C]: use %s.transpose(0, 2, 3, 1)",
            name, images.dtype, shape, name,
        )  # fmt: skip


def _check_axes(name: str, images: np.ndarray) -> None:
    """Checks that images have four axes, [n, H, W, C]."""
    if images.dtype == object or images.ndim == 4:
        return
    sizes = images.shape[1:]
    shape = f"[{', '.join(['N', *map(str, sizes)])}]"
    remedy = ""
    if len(sizes) == 2:
        remedy = f"; for grayscale images, use {name}[..., None]"
    elif len(sizes) == 1:
        side = round(sizes[0] ** 0.5)
        square = f"{side}, {side}" if side * side == sizes[0] else "H, W"
        remedy = f"; use {name}.reshape(-1, {square}, 1)"
    raise UserError(f"{name} must have shape [N, H, W, C], got {shape}{remedy}")


def _as_bytes(name: str, images: np.ndarray) -> np.ndarray:
    """Converts integers from 0 to 255, or booleans, to uint8."""
    if images.dtype == bool:
        return images.astype(np.uint8) * np.uint8(255)
    low, high = images.min(), images.max()
    if low < 0 or high > 255:
        raise UserError(
            f"{name} must be integers from 0 to 255, uint16 from 0 to 65535, or floats from 0 to "
            f"1, got {images.dtype} from {low} to {high}; use ({name} - {low}) / {high - low}"
        )
    return images.astype(np.uint8)
