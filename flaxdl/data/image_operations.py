"""Image operations of TrivialAugment, RandAugment and AutoAugment, applied with Pillow.

Names, magnitudes and results are torchvision's, equal in every pixel. B: images in a batch, H:
height, W: width, C: channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np

from flaxdl.checks import check_choice
from flaxdl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Magnitudes = Mapping[str, tuple[float, ...]]
"""Operation → its magnitudes, from weak to strong; empty if it has none."""

# Their magnitudes may be negated.
_SIGNED = (
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness"),
)
OPERATIONS = ("Identity", *_SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")
"""Operations that TrivialAugment and RandAugment draw from; AutoAugment also has Invert."""


def operate(
    image: "Image.Image",
    name: str,
    magnitude: float,
    *,
    resample: "Image.Resampling",
    fill: int | tuple[int, ...],
) -> "Image.Image":
    """Applies an operation to an image of mode L or RGB.

    Args:
        image: the image.
        name: name of the operation.
        magnitude: slope of a shear, pixels of a translation, degrees counterclockwise of a
            rotation, bits that Posterize keeps, threshold of Solarize, or relative change of
            brightness, color, contrast and sharpness.
        resample: interpolation of shears, translations and rotations.
        fill: color of pixels from outside the image.
    """
    from PIL import Image, ImageEnhance, ImageOps

    def sheared(*matrix: float) -> Image.Image:
        # (a, b, c, d, e, f): the pixel at (x, y) is that at (ax + by + c, dx + ey + f).
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

    def translated(right: int, down: int) -> Image.Image:
        # Pasting gives the pixels of torchvision's affine transform, and is much faster.
        result = Image.new(image.mode, image.size, fill)
        result.paste(image, (right, down))
        return result

    match name:
        case "Identity":
            return image
        case "ShearX":
            return sheared(1, magnitude, 0, 0, 1, 0)
        case "ShearY":
            return sheared(1, 0, 0, magnitude, 1, 0)
        case "TranslateX":
            return translated(int(magnitude), 0)
        case "TranslateY":
            return translated(0, int(magnitude))
        case "Rotate":
            return image.rotate(magnitude, resample, fillcolor=fill)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return getattr(ImageEnhance, name)(image).enhance(1 + magnitude)
        case "Posterize":
            return ImageOps.posterize(image, int(magnitude))
        case "Solarize":
            return ImageOps.solarize(image, magnitude)  # type: ignore[arg-type]  (may be a float)
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
    raise ValueError(f"unknown operation {name!r}")


def magnitude_of(magnitudes: Magnitudes, name: str, number: int, *, is_negative: bool) -> float:
    """Returns the magnitude at index `number`, negated if asked for and the operation is signed.

    It is 0 for operations without magnitudes.
    """
    if not magnitudes[name]:
        return 0.0
    magnitude = magnitudes[name][number]
    return -magnitude if is_negative and name in _SIGNED else magnitude


@cache
def spaced(first: float, last: float, count: int) -> tuple[float, ...]:
    """Returns `count` evenly spaced numbers, rounded as `torch.linspace` rounds them.

    The rounding matters: of 31 translations by up to 32 pixels, number 15 is 15.999999, truncated
    to 15 pixels.
    """
    start, end = np.float32(first), np.float32(last)
    # A float32 step, and float32 results of multiply-adds that are exact before they are rounded.
    step = np.float64((end - start) / np.float32(count - 1))
    places = np.arange(count)
    values = np.where(places < count // 2, start + step * places, end - step * places[::-1])
    return tuple(values.astype(np.float32).tolist())


@cache
def bits(removed: int, count: int) -> tuple[float, ...]:
    """Returns `count` numbers of bits, from 8 down to `8 - removed`."""
    steps = np.arange(count, dtype=np.float32) / np.float32((count - 1) / removed)
    return tuple((8 - np.rint(steps)).tolist())


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """No augmentation, and the base class of augmentations.

    A subclass draws random numbers for a batch, and computes the augmented images from them.
    """

    def draw(self, rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
        """Draws the random numbers for `augment`, as arrays [size, ...]."""
        return {}

    def augment(self, images: np.ndarray, draws: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the augmented images [B, H, W, C].

        Args:
            images: the images [B, H, W, C].
            draws: the result of `draw`, one row per image; it may have other arrays, too.
        """
        return images


@dataclass(frozen=True, kw_only=True)
class RandomOperations(Augmentation):
    """Base class of augmentations that apply a few random operations to each image."""

    interpolation: Literal["nearest", "bilinear"] = "nearest"
    """Interpolation of shears, translations and rotations."""
    fill: tuple[int, ...] = (0,)
    """Color of pixels from outside the image, from 0 to 255, per channel or for all channels."""

    def __post_init__(self):
        check_choice("augment.interpolation", self.interpolation, ("nearest", "bilinear"))
        if not (
            isinstance(self.fill, tuple)
            and self.fill
            and all(_is_integer(level) and 0 <= level <= 255 for level in self.fill)
        ):
            raise UserError(
                f"augment.fill must be a tuple of integers from 0 to 255, got {self.fill!r}"
            )

    def operations(
        self, draws: Mapping[str, np.ndarray], height: int, width: int
    ) -> list[list[tuple[str, float]]]:
        """Returns the operations on each image of a batch, as names and magnitudes.

        Args:
            draws: the result of `draw`.
            height: height of the images.
            width: width of the images.
        """
        raise NotImplementedError

    def augment(self, images: np.ndarray, draws: Mapping[str, np.ndarray]) -> np.ndarray:
        """Applies the operations, in order.

        Raises:
            UserError: if the images are not uint8 with one or three channels, or their channels do
                not match `fill`.
        """
        from PIL import Image

        _, H, W, C = images.shape
        kind = type(self).__name__
        if images.dtype != np.uint8 or C not in (1, 3):
            raise UserError(
                f"{kind} needs uint8 images with 1 or 3 channels, got {images.dtype}[{H}, {W}, {C}]"
            )
        if len(self.fill) not in (1, C):
            raise UserError(
                f"augment.fill must have 1 value or one per channel ({C}), got {self.fill}"
            )
        resample = Image.Resampling[self.interpolation.upper()]
        fill = self.fill[0] if C == 1 else self.fill * (C // len(self.fill))
        augmented = np.empty_like(images)
        for number, operations in enumerate(self.operations(draws, H, W)):
            image = images[number]
            picture = Image.fromarray(image[..., 0] if C == 1 else image)
            for name, magnitude in operations:
                picture = operate(picture, name, magnitude, resample=resample, fill=fill)
            augmented[number] = np.asarray(picture).reshape(H, W, C)
        return augmented


def check_number(name: str, value: int, least: int, most: int | None = None) -> None:
    """Checks that a setting is an integer in a range.

    Raises:
        UserError: if it is not.
    """
    if _is_integer(value) and least <= value and (most is None or value <= most):
        return
    allowed = f"at least {least}" if most is None else f"from {least} to {most}"
    raise UserError(f"{name} must be an integer, {allowed}, got {value!r}")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
