"""Input checks and flattening for the image models.

Legend: B batch, H height, W width, C channels.
"""

import jax

from flaxdl.checks import check_shape
from flaxdl.errors import UserError


def check_images(images: jax.Array, smallest: int = 1) -> None:
    """Checks that images have shape [B, H, W, C], with H and W of at least `smallest`.

    Raises:
        UserError: if the images have another number of axes or are smaller; the message states the
            shape.
    """
    check_shape("images", images, "B H W C")
    _, height, width, _ = images.shape
    if min(height, width) < smallest:
        raise UserError(f"images must be at least {smallest} x {smallest}, got {height} x {width}")


def flatten_channels_first(features: jax.Array) -> jax.Array:
    """Flattens [B, H, W, C] to [B, C * H * W], the order that PyTorch's classifiers expect."""
    return features.transpose(0, 3, 1, 2).reshape(features.shape[0], -1)
