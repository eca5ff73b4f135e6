"""Images: one size and augmentation on the host, normalization on the device.

B: images in a batch, H: height, W: width, C: channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.data.augmentation import crop, flip, rotate
from flaxdl.data.dataset import rows
from flaxdl.data.image_files import SUFFIXES, read_image
from flaxdl.data.sizing import ATTEMPTS, centre, random_part, resize
from flaxdl.data.transforms import Transform
from flaxdl.paths import local_path
from flaxdl.shapes import check_shape


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Computes (images - mean) / std, with one value for each channel or one for all.

    uint8 images are divided by 255 first, so `mean` and `std` are in units of full brightness.

    Raises:
        ValueError: if there are neither one value nor as many as channels.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, images.shape[-1]):
            raise ValueError(
                f"{name} must have 1 value or one for each of the {images.shape[-1]} channels, "
                f"got {len(values)}"
            )
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def grey(images: np.ndarray) -> np.ndarray:
    """Makes colour images [..., 3] grey [..., 1], weighted as ITU-R 601 and Pillow's "L" do."""
    if images.dtype != np.uint8:
        return images @ np.array([[0.299], [0.587], [0.114]], images.dtype)
    red, green, blue = (images[..., channel].astype(np.int32) for channel in range(3))
    levels = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # shares of 2**16
    return levels.astype(np.uint8)[..., None]


@dataclass(frozen=True)
class Images(Transform):
    """Images [H, W, C], brought to one size, augmented in training, normalized on the device."""

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

    def __post_init__(self):
        if self.size is None and (self.shorter_side, self.smallest_area) != (None, None):
            raise ValueError("shorter_side and smallest_area need a size, got None")
        if self.size and self.shorter_side and self.shorter_side < self.size:
            raise ValueError(
                f"shorter_side must be at least size = {self.size}, got {self.shorter_side}"
            )
        if self.smallest_area is not None and not 0 < self.smallest_area <= 1:
            raise ValueError(f"smallest_area must be in (0, 1], got {self.smallest_area}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1, 3 or None, got {self.channels}")

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
            ValueError: if the images have different sizes and `size` is None.
        """
        images = batch["inputs"]
        if self.channels == 1:
            images = _each_grey(images)
        if self.size is not None:
            images = self._squares(images, draws)
        elif images.dtype == object:
            raise ValueError("images of different sizes need one; set --transform.size")
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
            inputs = jnp.repeat(inputs, 3, axis=-1)
        return normalize(inputs, self.mean, self.std)

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Opens image files and brings them to the size of the training images."""
        H, W, C = shapes["inputs"]
        images = [read_image(local_path(item), C) for item in items]
        if self.size is not None:
            return {"inputs": self._squares(images, {})}
        return {"inputs": np.stack([resize(image, H, W) for image in images])}


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
