"""What the image models have in common: what goes in, and how activations are flattened.

Legend: B batch, H height, W width, C channels.
"""

import jax

from flaxdl.checks import check_shape
from flaxdl.errors import UserError


def check_images(images: jax.Array, smallest: int = 1) -> None:
    """Checks that images are [B, H, W, C] and not smaller than a model's pooling allows.

    Raises:
        UserError: naming the images, with the shape they have.
    """
    check_shape("images", images, "B H W C")
    _, height, width, _ = images.shape
    if min(height, width) < smallest:
        raise UserError(f"images must be at least {smallest} x {smallest}, got {height} x {width}")


def flatten_channels_first(features: jax.Array) -> jax.Array:
    """Flattens [B, H, W, C] to [B, C * H * W], the order in which PyTorch's classifiers read."""
    return features.transpose(0, 3, 1, 2).reshape(features.shape[0], -1)
