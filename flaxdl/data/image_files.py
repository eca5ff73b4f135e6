"""Reading image files of every common kind as bytes of one kind."""

import os.path
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flaxdl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
)

# Formats that Pillow decodes itself, named since others run programs (EPS) or fetch what files
# point to.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# Not opened to see whether they are images: documents and data, videos, copies that editors and
# browsers leave, and raw camera images, which begin as JPEG or TIFF files do.
_OTHER_SUFFIXES = frozenset((
    ".txt", ".md", ".rst", ".html", ".pdf", ".ps", ".eps", ".svg", ".doc", ".docx", ".csv", ".tsv",
    ".json", ".jsonl", ".xml", ".yaml", ".yml", ".ini", ".log", ".py", ".ipynb", ".db", ".npy",
    ".npz", ".mat", ".h5", ".pkl", ".pt", ".pth", ".zip", ".gz", ".tar", ".rar", ".7z", ".mp4",
    ".avi", ".mov", ".mkv", ".wav", ".mp3", ".bak", ".old", ".orig", ".tmp", ".part",
    ".crdownload", ".thm", ".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf",
    ".pef",
))  # fmt: skip

# Longer side / shorter side. What resizes the shorter side before it cuts would make 256 x 512,000
# pixels of 4 x 8,000, which take seconds and a gigabyte; panoramas are below 20.
_MOST_ELONGATED = 50


def is_image(path: str) -> bool:
    """Returns whether a regular file is an image by its suffix, or by content if that is unknown.

    Of the content only signatures count that no other kind of file begins with.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return True
    if suffix in _OTHER_SUFFIXES or suffix.endswith("~"):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4))
        or start[4:12] in (b"ftypavif", b"ftypavis", b"jP  \r\n\x87\n")
    )


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """Reads an image file as uint8[H, W, channels].

    The camera's orientation is applied if it can be read, transparent pixels show white, 16-bit
    grey is scaled to 8 bits, and of an animation the first image counts. One channel means grey and
    three mean red, green, blue.

    Raises:
        UserError: naming the file, if it is missing, no image that can be decoded, or one of more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS` or more than 50 times as long as wide, or if
            `channels` is neither 1 nor 3.
    """
    from PIL import Image

    if channels not in (1, 3):
        raise UserError(f"image files have 1 or 3 channels, the model takes {channels}")
    try:
        with Image.open(path, formats=_formats()) as opened:
            _check_size(opened.size)
            opened.load()
            is_16_bit = opened.format == "PPM" and opened.mode == "I"
            image = _upright(opened)
        if is_16_bit:
            image = Image.fromarray(np.asarray(image).astype(np.uint16))
        pixels = np.asarray(_opaque(image).convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise UserError(f"no such image file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} cannot be read as an image: it is a folder") from None
    except Exception as error:  # decoders raise all kinds about broken bytes
        reason = "it is empty" if _is_empty(path) else str(error).strip() or type(error).__name__
        raise UserError(f"{path} cannot be read as an image: {reason}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


@cache
def _formats() -> list[str]:
    """Those of the formats that this Pillow can read."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check_size(size: tuple[int, int]) -> None:
    """Refuses what is or would become huge before its memory is taken.

    Pillow warns of more pixels than its limit, and refuses only twice as many.
    """
    from PIL import Image

    pixels, limit = size[0] * size[1], Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise UserError(f"{pixels:,} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit:,}")
    if max(size) > _MOST_ELONGATED * min(size):
        raise UserError(
            f"of {size[0]} x {size[1]} pixels the longer side must be at most {_MOST_ELONGATED} "
            f"times the shorter one"
        )


def _upright(image: "Image.Image") -> "Image.Image":
    """A copy as the camera was held; as it is stored if the EXIF data are broken.

    `ImageOps.exif_transpose` would also write the EXIF data again, which fails for some that can
    be read.
    """
    from PIL import ExifTags
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels are sound
        orientation = 1
    method = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image.copy() if method is None else image.transpose(method)


def _opaque(image: "Image.Image") -> "Image.Image":
    """The image with 8 bits a channel, on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))  # 65535 is white
    if image.mode in ("I", "F"):
        raise UserError(f"32-bit pixels have no white (mode {image.mode}); save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _is_empty(path: str | Path) -> bool:
    # Unlike Path.is_file, this is no error where the folder may not be entered.
    return os.path.isfile(path) and os.path.getsize(path) == 0
