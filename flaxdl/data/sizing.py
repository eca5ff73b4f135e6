"""Bringing images of any size to one: the middle or a random part.

H: height, W: width, C: channels. Images are resized one by one, as bytes.
"""

import numpy as np

from flaxdl.errors import UserError


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


def covering(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image, undistorted, until it covers a size, and cuts the middle out.

    Returns:
        uint8[height, width, C].
    """
    H, W, _ = image.shape
    scale = max(height / H, width / W)
    tall, wide = max(round(scale * H), height), max(round(scale * W), width)
    top, left = (tall - height) // 2, (wide - width) // 2
    return resize(image, tall, wide)[top : top + height, left : left + width]


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
        UserError: if the image is not uint8[H, W, C] with one or three channels.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise UserError(
            f"only images uint8[H, W, 1] or [H, W, 3] can be resized, "
            f"got {image.dtype}{list(image.shape)}"
        )
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, -1)
