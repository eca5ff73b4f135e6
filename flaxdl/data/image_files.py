"""Image files of all common formats, read as uint8 arrays."""

import os.path
from functools import cache
from io import BytesIO
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

# Formats that Pillow decodes itself; others run programs (EPS) or open referenced files.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# Suffixes of files that are never opened to check for images: documents and data, videos, backup
# and partial files of editors and browsers, and raw camera images (which start like JPEG or TIFF).
_OTHER_SUFFIXES = frozenset((
    ".txt", ".md", ".rst", ".html", ".pdf", ".ps", ".eps", ".svg", ".doc", ".docx", ".csv", ".tsv",
    ".json", ".jsonl", ".xml", ".yaml", ".yml", ".ini", ".log", ".py", ".ipynb", ".db", ".npy",
    ".npz", ".mat", ".h5", ".pkl", ".pt", ".pth", ".zip", ".gz", ".tar", ".rar", ".7z", ".mp4",
    ".avi", ".mov", ".mkv", ".wav", ".mp3", ".bak", ".old", ".orig", ".tmp", ".part",
    ".crdownload", ".thm", ".raw", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf",
    ".pef",
))  # fmt: skip

# Longer side / shorter side. Resizing the shorter side of 4 x 8,000 pixels to 256 before cropping
# would make 256 x 512,000 pixels and take seconds and a gigabyte; panoramas are below 20.
_MAX_ASPECT_RATIO = 50


def is_image(path: str) -> bool:
    """Returns True if a regular file is an image.

    The suffix decides if it is known; otherwise, the content must start with the signature of an
    image format that has an unambiguous one.
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

    Applies the EXIF orientation if it can be read, composes transparent pixels onto white, scales
    16-bit grayscale to 8 bits, and reads the first frame of an animation.

    Args:
        path: path of the file.
        channels: 1 for grayscale or 3 for RGB.

    Raises:
        UserError: if the file is missing, cannot be decoded, has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` or an aspect ratio above 50, or if `channels` is neither 1
            nor 3.
    """
    return _read(path, str(path), channels)


def decode_image(content: bytes, name: str, channels: int) -> np.ndarray:
    """Decodes the content of an image file as uint8[H, W, channels], like `read_image`.

    Args:
        content: bytes of the file.
        name: name for messages.
        channels: 1 for grayscale or 3 for RGB.

    Raises:
        UserError: if the content cannot be decoded, as for `read_image`.
    """
    if not content:
        raise UserError(f"{name} cannot be read as an image: it is empty")
    return _read(BytesIO(content), name, channels)


def _read(source: str | Path | BytesIO, name: str, channels: int) -> np.ndarray:
    from PIL import Image

    if channels not in (1, 3):
        raise UserError(
            f"image files can be read with 1 or 3 channels, but the model takes {channels}"
        )
    try:
        with Image.open(source, formats=_formats()) as opened:
            _check_size(opened.size)
            opened.load()
            is_16_bit = opened.format == "PPM" and opened.mode == "I"
            image = _upright(opened)
        if is_16_bit:
            image = Image.fromarray(np.asarray(image).astype(np.uint16))
        pixels = np.asarray(_opaque(image).convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError:
        raise UserError(f"no such image file: {name}") from None
    except IsADirectoryError:
        raise UserError(f"{name} cannot be read as an image: it is a folder") from None
    except Exception as error:  # decoders may raise any error for broken files
        is_empty = not isinstance(source, BytesIO) and _is_empty(source)
        reason = "it is empty" if is_empty else str(error).strip() or type(error).__name__
        raise UserError(f"{name} cannot be read as an image: {reason}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


@cache
def _formats() -> list[str]:
    """Returns the names of the accepted formats that the installed Pillow can read."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check_size(size: tuple[int, int]) -> None:
    """Rejects images with too many pixels or too large an aspect ratio, before decoding.

    Pillow only warns above its limit on pixels, and rejects images above twice that limit.
    """
    from PIL import Image

    pixels, limit = size[0] * size[1], Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise UserError(
            f"it has {pixels:,} pixels, more than PIL.Image.MAX_IMAGE_PIXELS = {limit:,}"
        )
    if max(size) > _MAX_ASPECT_RATIO * min(size):
        raise UserError(
            f"it has {size[0]} x {size[1]} pixels; the longer side must be at most "
            f"{_MAX_ASPECT_RATIO} times the shorter one"
        )


def _upright(image: "Image.Image") -> "Image.Image":
    """Returns a copy with the EXIF orientation applied, or unchanged if the EXIF data is invalid.

    Unlike `ImageOps.exif_transpose`, it does not rewrite the EXIF data: rewriting fails for some
    readable images.
    """
    from PIL import ExifTags
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels may still be valid
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
    """Returns the image with 8 bits per channel and transparent pixels composed onto white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))  # 65535 is white
    if image.mode in ("I", "F"):
        raise UserError(
            f"32-bit pixels (mode {image.mode}) have no defined white; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _is_empty(path: str | Path) -> bool:
    # Unlike Path.is_file, this does not raise if the folder is not accessible.
    return os.path.isfile(path) and os.path.getsize(path) == 0
