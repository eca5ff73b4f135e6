"""The small convolutional network of the document.

Legend: B batch, H height, W width, C channels, K classes.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from flaxdl.layers import Conv, Dropout, Linear, adaptive_avg_pool, max_pool
from flaxdl.models.images import check_images, flatten_channels_first
from flaxdl.models.sizes import known_size


class SimpleCNN(nn.Module):
    """Three convolutions and two linear layers, for images of any size from 4 x 4.

    620,362 parameters with ten classes and three input channels.
    """

    num_classes: int | None = 10
    """Number of logits per image; None takes it from the data of a run."""
    dropout: float = 0.5
    """Share of the hidden units dropped in training."""

    tensor_axes: ClassVar[dict[str, int]] = {"classifier.1.*": 0, "classifier.4.weight": 1}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K].

        Raises:
            UserError: if the images have another rank or are smaller than 4 x 4.
        """
        check_images(images, smallest=4)
        x = nn.relu(Conv(32, 3, padding=1, name="features.0")(images))
        x = max_pool(x, 2)  # [B, H/2, W/2, 32]
        x = nn.relu(Conv(64, 3, padding=1, name="features.3")(x))
        x = max_pool(x, 2)  # [B, H/4, W/4, 64]
        x = nn.relu(Conv(128, 3, padding=1, name="features.6")(x))
        x = adaptive_avg_pool(x, 4)  # [B, 4, 4, 128], whatever the size of the images

        x = flatten_channels_first(x)  # [B, 2048]
        x = nn.relu(Linear(256, name="classifier.1")(x))
        x = Dropout(self.dropout, name="classifier.3")(x, train)
        return Linear(known_size("num_classes", self.num_classes), name="classifier.4")(x)
