"""Images: one size and augmentation on the host, normalization on the device.

B: images in a batch, H: height, W: width, C: channels.
"""

import copy
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from flaxdl.checks import check_shape
from flaxdl.data.augmentation import crop, flip, rotate
from flaxdl.data.dataset import ArrayDataset, Dataset, rows, sample
from flaxdl.data.image_files import SUFFIXES, is_image, read_image
from flaxdl.data.sizing import ATTEMPTS, centre, covering, random_part
from flaxdl.data.transforms import Transform
from flaxdl.errors import UserError
from flaxdl.filesystem.paths import local_path

_LOGGER = logging.getLogger(__name__)
_FILE_NAME = "images.json"
_OVERSHOOT = 0.1  # of the range, by which interpolation goes beyond black and white
# Of floats, and of 4, 8, 12 and 16 bits stored as such. Those of 4 bits lie close together.
_WHITES = (15, 16, 255, 4095, 65535)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Computes (images - mean) / std, with one value for each channel or one for all.

    Integers are divided by 255 first, those of 16 bits without a sign by 65535, and booleans are 0
    and 1, so `mean` and `std` are in units of full brightness. Floats are taken as they are.

    Raises:
        UserError: if there are neither one value nor as many as channels.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[-1]):
            raise UserError(
                f"{name} must have 1 value or one for each of the {images.shape[-1]} channels, "
                f"got {len(values)}"
            )
    if images.dtype.kind in "biu":
        white = {"uint16": 65535, "bool": 1}.get(images.dtype.name, 255)
        images = images.astype(np.float32) / white
    return (images - np.asarray(mean, images.dtype)) / np.asarray(std, images.dtype)


def grey(images: np.ndarray) -> np.ndarray:
    """Makes colour images [..., 3] grey [..., 1], weighted as ITU-R 601 and Pillow's "L" do."""
    if images.dtype != np.uint8:
        return images @ np.array([[0.299], [0.587], [0.114]], images.dtype)
    red, green, blue = (images[..., channel].astype(np.int32) for channel in range(3))
    levels = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # shares of 2**16
    return levels.astype(np.uint8)[..., None]


@dataclass(frozen=True)
class Images(Transform):
    """Images [H, W, C], brought to one size, augmented in training, normalized on the device.

    Arrays of integers of 0 to 255 and booleans become uint8. Those of 16 bits without a sign and
    floats stay what they are.
    """

    file_suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    mean: tuple[float, ...] = (0.5,)
    """What is subtracted, for each channel or for all; 1 is full brightness."""
    std: tuple[float, ...] = (0.5,)
    """What the difference is divided by."""
    size: int | None = None
    """Images of any size become squares of this side; None for images that have one size."""
    shorter_side: int | None = None
    """To become a square, an image's shorter side is resized to this; by default to `size`."""
    smallest_area: float | None = None
    """In training the square is a random part with at least this share of the image instead."""
    channels: int | None = None
    """1 makes colour images grey, 3 repeats grey for a model of colour; None leaves them."""
    rotation: float = 0.0
    """Images are turned by up to this many degrees either way."""
    crop_padding: int = 0
    """Images are moved by up to this many pixels each way."""
    flip: bool = False
    """Half of the images are mirrored, left to right."""
    levels: tuple[float, float] | None = field(default=None, init=False, repr=False, compare=False)
    """Black and white in training images that are floats beyond 0 to 1, found by `fit`; image files
    to predict are brought to the same."""

    def __post_init__(self):
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values or not np.isfinite(values).all():
                raise UserError(f"{name} must be finite numbers, got {values}")
        if min(self.std) <= 0:
            raise UserError(f"std must be above 0, got {self.std}")
        if self.size is None and (self.shorter_side, self.smallest_area) != (None, None):
            raise UserError("shorter_side and smallest_area need a size, got None")
        if self.size and self.shorter_side and self.shorter_side < self.size:
            raise UserError(
                f"shorter_side must be at least size = {self.size}, got {self.shorter_side}"
            )
        if self.smallest_area is not None and not 0 < self.smallest_area <= 1:
            raise UserError(f"smallest_area must be in (0, 1], got {self.smallest_area}")
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels must be 1, 3 or None, got {self.channels}")

    def reads_file(self, path: str) -> bool:
        """Returns whether a file is an image; see `image_files.is_image`."""
        return is_image(path)

    def fit(self, train: Dataset) -> "Images":
        """Finds black and white in images that are floats; see `levels`."""
        if not train.in_memory:
            return self
        name, images = train.name_of("inputs"), sample(train)["inputs"]
        _warn_if_channels_first(name, images)
        if images.dtype.kind != "f" or not images.size:
            return self
        low, high = float(images.min()), float(images.max())
        levels = _levels(low, high)
        if levels == (0.0, 1.0):  # as bytes are scaled to
            return self
        if levels is None:
            _LOGGER.warning(
                "%s (%s, %.4g to %.4g): unknown scale, so predictions for image files assume 0 to "
                "1 and may be wrong; use uint8, or floats from 0 to 1",
                name, images.dtype, low, high,
            )  # fmt: skip
        return self._with_levels(levels)

    def apply(self, dataset: Dataset) -> Dataset:
        """Makes integers and booleans in memory uint8.

        Raises:
            UserError: if the arrays are no images, or of integers beyond 0 to 255.
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
        """Stores `levels` in images.json; without any there is no such file."""
        if self.levels is None:
            (workdir / _FILE_NAME).unlink(missing_ok=True)  # of other data
        else:
            (workdir / _FILE_NAME).write_text(json.dumps({"levels": self.levels}) + "\n")

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
        """Draws parts, angles, offsets and who is mirrored, as far as they are asked for."""
        draws = {}
        if self.smallest_area:
            draws["areas"] = rng.uniform(self.smallest_area, 1, (size, ATTEMPTS))
            draws["ratios"] = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (size, ATTEMPTS)))
            draws["places"] = rng.random((size, 2))
        if self.rotation:
            draws["degrees"] = rng.uniform(-self.rotation, self.rotation, size)
        if self.crop_padding:
            draws["offsets"] = rng.integers(0, 2 * self.crop_padding + 1, (size, 2))
        if self.flip:
            draws["flipped"] = rng.random(size) < 0.5
        return draws

    def prepare(
        self, batch: dict[str, np.ndarray], draws: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Brings the images to one size; then rotates, crops and flips, in this order.

        Colour is made grey here, before anything else, as in `read`. Grey is repeated in
        `normalize`, so that it travels once.

        Raises:
            UserError: if the images have different sizes and `size` is None.
        """
        images = batch["inputs"]
        if self.channels == 1:
            images = _each_grey(images)
        if self.size is not None:
            images = self._squares(images, draws)
        elif images.dtype == object:
            sizes = sorted({f"{image.shape[0]} x {image.shape[1]}" for image in images})
            raise UserError(
                f"images of different sizes need one; set --transform.size (the first ones are "
                f"{' and '.join(sizes[:3])})"
            )
        check_shape("images", images, "B H W C")
        if "degrees" in draws:
            images = rotate(images, draws["degrees"])
        if "offsets" in draws:
            images = crop(images, draws["offsets"], padding=self.crop_padding)
        if "flipped" in draws:
            images = flip(images, draws["flipped"])
        return batch | {"inputs": images}

    def _squares(self, images: Iterable[np.ndarray], draws: Mapping[str, np.ndarray]) -> np.ndarray:
        size = self.size or 0
        if "areas" in draws:
            parts = zip(images, draws["areas"], draws["ratios"], draws["places"], strict=True)
            return np.stack([random_part(*part, size=size) for part in parts])
        shorter_side = self.shorter_side or size
        return np.stack([centre(image, size=size, shorter_side=shorter_side) for image in images])

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Repeats grey where colour is wanted, and normalizes."""
        if self.channels == 3 and inputs.shape[-1] == 1:
            inputs = inputs.repeat(3, axis=-1)
        return normalize(inputs, self.mean, self.std)

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Opens image files and brings them to the size of the training images.

        Where there is no `size`, an image of another shape is resized until it covers that of the
        training images, and the middle is cut out, so that nothing is distorted.
        """
        H, W, C = shapes["inputs"]
        images = [read_image(local_path(item), C) for item in items]
        if self.size is not None:
            inputs = self._squares(images, {})
        else:
            inputs = np.stack([covering(image, H, W) for image in images])
        if self.levels is not None:
            black, white = self.levels
            inputs = black + (white - black) / 255 * inputs.astype(np.float32)
        return {"inputs": inputs}


@dataclass(frozen=True)
class ImageRows(Images):
    """Images as sequences: row after row from above, each a vector of W · C numbers."""

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Normalizes images [B, H, W, C] and gives [B, H, W * C]."""
        images = super().normalize(inputs)
        return images.reshape(*images.shape[:2], -1)


def _each_grey(images: np.ndarray) -> np.ndarray:
    """Makes a batch grey, of one size or an object for each image, where it is not yet."""
    if images.dtype != object:
        return grey(images) if images.shape[-1] == 3 else images
    return rows([grey(image) if image.shape[-1] == 3 else image for image in images])


def _levels(low: float, high: float) -> tuple[float, float] | None:
    """Black and white of images with these values; None unless they come near both."""
    if abs(low + 1) <= 2 * _OVERSHOOT and abs(high - 1) <= 2 * _OVERSHOOT:
        return -1.0, 1.0
    if high <= 1 + _OVERSHOOT:  # of any brightness
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
    """Checks that images [n, H, W, C] have all axes."""
    if images.dtype == object or images.ndim == 4:
        return
    sizes = images.shape[1:]
    shape = f"[{', '.join(['N', *map(str, sizes)])}]"
    remedy = ""
    if len(sizes) == 2:
        remedy = f"; if they are gray, use {name}[..., None]"
    elif len(sizes) == 1:
        side = round(sizes[0] ** 0.5)
        square = f"{side}, {side}" if side * side == sizes[0] else "H, W"
        remedy = f"; use {name}.reshape(-1, {square}, 1)"
    raise UserError(f"{name} must have shape [N, H, W, C], got {shape}{remedy}")


def _as_bytes(name: str, images: np.ndarray) -> np.ndarray:
    """Integers of 0 to 255, or booleans, as uint8."""
    if images.dtype == bool:
        return images.astype(np.uint8) * np.uint8(255)
    low, high = images.min(), images.max()
    if low < 0 or high > 255:
        raise UserError(
            f"{name} ({images.dtype}, {low} to {high}) must be integers of 0 to 255, uint16 of 0 "
            f"to 65535, or floats of 0 to 1; use ({name} - {low}) / {high - low}"
        )
    return images.astype(np.uint8)
