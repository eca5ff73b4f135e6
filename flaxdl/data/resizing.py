"""Center crops and random resized crops, which give images a common size.

Legend: H height, W width, C channels. Images are uint8, and are resized one at a time.
"""

import numpy as np

from flaxdl.errors import UserError


def center_crop(image: np.ndarray, *, size: int, shorter_side: int) -> np.ndarray:
    """Resizes an image by its shorter side and crops the center: uint8[size, size, C].

    Equals torchvision's `Resize(shorter_side)` and `CenterCrop(size)` in every pixel.
    """
    H, W, _ = image.shape
    if H < W:
        height, width = shorter_side, int(shorter_side * W / H)
    else:
        height, width = int(shorter_side * H / W), shorter_side
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(image, height, width)[top : top + size, left : left + size]


def resize_to_cover(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image to cover a size, keeping its aspect ratio, and crops the center.

    Returns:
        uint8[height, width, C].
    """
    H, W, _ = image.shape
    scale = max(height / H, width / W)
    tall, wide = max(round(scale * H), height), max(round(scale * W), width)
    top, left = (tall - height) // 2, (wide - width) // 2
    return resize(image, tall, wide)[top : top + height, left : left + width]


ATTEMPTS = 10  # at a random crop that fits into the image


def random_resized_crop(
    image: np.ndarray,
    areas: np.ndarray,  # [ATTEMPTS], as fractions of the image
    ratios: np.ndarray,  # [ATTEMPTS], width / height
    place: np.ndarray,  # [2], rows and columns, from 0 to 1
    *,
    size: int,
) -> np.ndarray:
    """Crops the first area and aspect ratio that fit, resized to uint8[size, size, C].

    As torchvision's `RandomResizedCrop`, the augmentation that Inception was trained with (Szegedy
    et al., "Going Deeper with Convolutions", 2014). If none fits, crops the largest center part
    with an aspect ratio between 3/4 and 4/3.
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
    """Resizes an image to uint8[height, width, C] with Pillow, bilinear and antialiased.

    Raises:
        UserError: if the image is not uint8[H, W, C] with one or three channels.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise UserError(
            f"images to resize must be uint8[H, W, 1] or uint8[H, W, 3], "
            f"got {image.dtype}{list(image.shape)}"
        )
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, -1)
