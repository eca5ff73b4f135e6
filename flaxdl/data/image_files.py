"""Reading image files of every common kind as bytes of one kind."""

import os.path
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

# Named, since others of Pillow's formats run programs (EPS) or fetch what files point to.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

# Longer side / shorter side. What resizes the shorter side before it cuts would make 256 x 512,000
# pixels of 4 x 8,000, which take seconds and a gigabyte; panoramas are below 20.
_MOST_ELONGATED = 50


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """Reads an image file as uint8[H, W, channels].

    The camera's orientation is applied, transparent pixels show white, 16-bit grey is scaled to 8
    bits, and of an animation the first image counts. One channel means grey and three mean red,
    green, blue.

    Raises:
        ValueError: naming the file, if it is missing, no image that can be decoded, or one of more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS` or more than 50 times as long as wide, or if
            `channels` is neither 1 nor 3.
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"image files have 1 or 3 channels, the model takes {channels}")
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            _check_size(opened.size)
            image = ImageOps.exif_transpose(opened)
        pixels = np.asarray(_opaque(image).convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise ValueError(f"no such image file: {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path} cannot be read as an image: it is a folder") from None
    except Exception as error:  # decoders raise all kinds about broken bytes
        reason = "it is empty" if _is_empty(path) else str(error).strip() or type(error).__name__
        raise ValueError(f"{path} cannot be read as an image: {reason}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _check_size(size: tuple[int, int]) -> None:
    """Refuses what is or would become huge before its memory is taken.

    Pillow warns of more pixels than its limit, and refuses only twice as many.
    """
    from PIL import Image

    pixels, limit = size[0] * size[1], Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise ValueError(f"{pixels:,} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit:,}")
    if max(size) > _MOST_ELONGATED * min(size):
        raise ValueError(
            f"of {size[0]} x {size[1]} pixels the longer side must be at most {_MOST_ELONGATED} "
            f"times the shorter one"
        )


def _opaque(image: "Image.Image") -> "Image.Image":
    """The image with 8 bits a channel, on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))  # 65535 is white
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels have no white (mode {image.mode}); save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _is_empty(path: str | Path) -> bool:
    # Unlike Path.is_file, this is no error where the folder may not be entered.
    return os.path.isfile(path) and os.path.getsize(path) == 0
