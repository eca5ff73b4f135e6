"""Small convolutional network for images of any size.

Legend: B batch, H height, W width, C channels, K classes.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from flaxdl.layers import Conv, Dropout, Linear, adaptive_avg_pool, max_pool
from flaxdl.models.images import check_images, flatten_channels_first
from flaxdl.models.sizes import required_size


class SimpleCNN(nn.Module):
    """CNN of three convolutions and two linear layers, for images of at least 4 x 4.

    The model has 620,362 parameters with ten classes and three input channels.
    """

    num_classes: int | None = 10
    """Number of classes; inferred from the data if None."""
    dropout: float = 0.5
    """Dropout rate before the last linear layer."""

    tensor_axes: ClassVar[dict[str, int]] = {"classifier.1.*": 0, "classifier.4.weight": 1}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K].

        Raises:
            UserError: if the images do not have four axes, or are smaller than 4 x 4.
        """
        check_images(images, smallest=4)
        x = nn.relu(Conv(32, 3, padding=1, name="features.0")(images))
        x = max_pool(x, 2)  # [B, H/2, W/2, 32]
        x = nn.relu(Conv(64, 3, padding=1, name="features.3")(x))
        x = max_pool(x, 2)  # [B, H/4, W/4, 64]
        x = nn.relu(Conv(128, 3, padding=1, name="features.6")(x))
        x = adaptive_avg_pool(x, 4)  # [B, 4, 4, 128] for any image size

        x = flatten_channels_first(x)  # [B, 2048]
        x = nn.relu(Linear(256, name="classifier.1")(x))
        x = Dropout(self.dropout, name="classifier.3")(x, train)
        return Linear(required_size("num_classes", self.num_classes), name="classifier.4")(x)
