"""Images: one size and augmentation on the host, normalization on the device, reading from files.

B: images in a batch, H: height, W: width, C: channels. Images of different sizes are resized one
by one, as bytes. Augmentation works on whole batches of any dtype and returns the same dtype; what
chance decides comes in as an array with a row per image.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxdl.data.transforms import Transform
from flaxdl.shapes import check_shape


def crop(
    images: np.ndarray,  # [B, H, W, C]
    offsets: np.ndarray,  # int[B, 2], rows and columns in 0..2 * padding
    *,
    padding: int,
) -> np.ndarray:
    """Pads with zeros on all four sides, then cuts [H, W] out at each image's own offset.

    An offset of (padding, padding) gives the image back; (0, 0) moves it down and right.
    """
    B, H, W, _ = images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (H, W), axis=(1, 2))
    cut = windows[np.arange(B), offsets[:, 0], offsets[:, 1]]  # [B, C, H, W]
    return np.ascontiguousarray(cut.transpose(0, 2, 3, 1))


def flip(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mirrors the images [B, H, W, C] where `chosen` (bool[B]) is true, left to right."""
    flipped = images.copy()
    flipped[chosen] = images[chosen, :, ::-1]
    return flipped


def rotate(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Turns the images [B, H, W, C] counterclockwise about their centres by `degrees` [B].

    Each pixel is interpolated between the four nearest to where it comes from; outside the image
    there are zeros.
    """
    # A few at a time, since small temporary arrays are reused: twice as fast as all at once.
    groups = [slice(start, start + 16) for start in range(0, len(images), 16)]
    return np.concatenate([_rotate(images[group], degrees[group]) for group in groups])


def _rotate(images: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    B, H, W, C = images.shape
    angles = np.deg2rad(degrees, dtype=np.float32)[:, None, None]
    cosine, sine = np.cos(angles), np.sin(angles)
    y = (np.arange(H, dtype=np.float32) - (H - 1) / 2)[:, None]
    x = (np.arange(W, dtype=np.float32) - (W - 1) / 2)[None, :]
    # Where pixels come from, [B, H, W]; rows grow downwards, and + 1 is for the border of zeros.
    rows = np.clip(cosine * y + sine * x + ((H - 1) / 2 + 1), 0, H + 1)
    columns = np.clip(cosine * x - sine * y + ((W - 1) / 2 + 1), 0, W + 1)
    top = np.minimum(rows.astype(np.int32), H)
    left = np.minimum(columns.astype(np.int32), W)
    down, right = rows - top.astype(np.float32), columns - left.astype(np.float32)
    corner = (np.arange(B)[:, None, None] * (H + 2) + top) * (W + 2) + left

    turned = np.empty((B, H, W, C), np.result_type(images.dtype, np.float32))
    for channel in range(C):
        bordered = np.pad(images[..., channel], ((0, 0), (1, 1), (1, 1))).astype(turned.dtype)
        pixels = bordered.ravel()
        upper = _between(pixels.take(corner), pixels.take(corner + 1), right)
        lower = _between(pixels.take(corner + W + 2), pixels.take(corner + W + 3), right)
        turned[..., channel] = _between(upper, lower, down)
    if images.dtype.kind in "iu":
        turned = np.rint(turned)
    return turned.astype(images.dtype)


def _between(start: np.ndarray, end: np.ndarray, part: np.ndarray) -> np.ndarray:
    return start + (end - start) * part


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


def centre(image: np.ndarray, *, size: int, shorter_side: int) -> np.ndarray:
    """Resizes an image's shorter side and cuts the middle out, as uint8[size, size, C].

    As torchvision's `Resize(shorter_side)` and `CenterCrop(size)`, to the pixel.
    """
    H, W, _ = image.shape
    if H < W:
        height, width = shorter_side, int(shorter_side * W / H)
    else:
        height, width = int(shorter_side * H / W), shorter_side
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(image, height, width)[top : top + size, left : left + size]


ATTEMPTS = 10  # at a random part that lies inside the image


def random_part(
    image: np.ndarray,
    areas: np.ndarray,  # [ATTEMPTS], as shares of the image
    ratios: np.ndarray,  # [ATTEMPTS], width / height
    place: np.ndarray,  # [2], rows and columns, from 0 to 1
    *,
    size: int,
) -> np.ndarray:
    """Cuts a part out of an image, of the first area and ratio that fit, as uint8[size, size, C].

    As torchvision's `RandomResizedCrop`: the way in which Inception was trained (Szegedy et al.,
    "Going Deeper with Convolutions", 2014). Where nothing fits, it is the largest part in the
    middle with a ratio between 3/4 and 4/3.
    """
    H, W, _ = image.shape
    heights = np.rint(np.sqrt(areas * H * W / ratios)).astype(int)
    widths = np.rint(np.sqrt(areas * H * W * ratios)).astype(int)
    fitting = np.flatnonzero((heights > 0) & (heights <= H) & (widths > 0) & (widths <= W))
    if len(fitting):
        height, width = heights[fitting[0]], widths[fitting[0]]
        top, left = (place * (H - height + 1, W - width + 1)).astype(int)
    else:
        height, width = min(H, round(W * 4 / 3)), min(W, round(H * 4 / 3))
        top, left = (H - height) // 2, (W - width) // 2
    return resize(image[top : top + height, left : left + width], size, size)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image to uint8[height, width, C], bilinear and antialiased, as Pillow does it.

    Raises:
        ValueError: if the image is not uint8[H, W, C] with one or three channels.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"only images uint8[H, W, 1] or [H, W, 3] can be resized, "
            f"got {image.dtype}{list(image.shape)}"
        )
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, -1)


@dataclass(frozen=True)
class Images(Transform):
    """Images [H, W, C], brought to one size, augmented in training, normalized on the device."""

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

        Raises:
            ValueError: if the images have different sizes and `size` is None.
        """
        images = batch["inputs"]
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
            rows = zip(images, draws["areas"], draws["ratios"], draws["places"], strict=True)
            return np.stack([random_part(*row, size=size) for row in rows])
        shorter_side = self.shorter_side or size
        return np.stack([centre(image, size=size, shorter_side=shorter_side) for image in images])

    def normalize(self, inputs: jax.Array) -> jax.Array:
        """Subtracts the mean and divides by the standard deviation."""
        return normalize(inputs, self.mean, self.std)

    def read(
        self, items: Sequence[str], shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, np.ndarray]:
        """Opens image files and brings them to the size of the training images."""
        H, W, C = shapes["inputs"]
        images = [read_image(item, C) for item in items]
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


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """Reads an image file as uint8[H, W, channels].

    The camera's orientation is applied; one channel means grey and three mean red, green, blue.

    Raises:
        ValueError: naming the file, if it is missing or no image that can be decoded, or if
            `channels` is neither 1 nor 3.
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"image files have 1 or 3 channels, the model takes {channels}")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise ValueError(f"no such image file: {path}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return np.asarray(image).reshape(image.height, image.width, channels)
