"""AlexNet, as in torchvision.

Krizhevsky, "One Weird Trick for Parallelizing Convolutional Neural Networks", 2014. This is the
network of Krizhevsky, Sutskever and Hinton (2012), adapted to a single device.

Legend: B batch, H height, W width, C channels, K classes.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from flaxdl.layers import Conv, Dropout, Linear, adaptive_avg_pool, max_pool
from flaxdl.models.images import check_images, flatten_channels_first
from flaxdl.models.sizes import required_size


class AlexNet(nn.Module):
    """AlexNet: five convolutions and three linear layers, for images of at least 63 x 63.

    The model has 61,100,840 parameters with 1000 classes and three input channels.
    """

    num_classes: int | None = 1000
    """Number of classes; inferred from the data if None."""
    dropout: float = 0.5
    """Dropout rate before the first two linear layers."""

    tensor_axes: ClassVar[dict[str, int]] = {"classifier.1.*": 0, "classifier.4.weight": 1}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K].

        Raises:
            UserError: if the images do not have four axes, or are smaller than 63 x 63.
        """
        check_images(images, smallest=63)
        # Shapes in comments are for images of 224 x 224.
        x = nn.relu(Conv(64, 11, stride=4, padding=2, name="features.0")(images))  # [B, 55, 55, 64]
        x = max_pool(x, 3, stride=2)  # [B, 27, 27, 64]
        x = nn.relu(Conv(192, 5, padding=2, name="features.3")(x))
        x = max_pool(x, 3, stride=2)  # [B, 13, 13, 192]
        x = nn.relu(Conv(384, 3, padding=1, name="features.6")(x))
        x = nn.relu(Conv(256, 3, padding=1, name="features.8")(x))
        x = nn.relu(Conv(256, 3, padding=1, name="features.10")(x))
        x = max_pool(x, 3, stride=2)  # [B, 6, 6, 256]
        x = adaptive_avg_pool(x, 6)  # [B, 6, 6, 256] for any image size

        x = flatten_channels_first(x)  # [B, 9216]
        x = Dropout(self.dropout, name="classifier.0")(x, train)
        x = nn.relu(Linear(4096, name="classifier.1")(x))
        x = Dropout(self.dropout, name="classifier.3")(x, train)
        x = nn.relu(Linear(4096, name="classifier.4")(x))
        return Linear(required_size("num_classes", self.num_classes), name="classifier.6")(x)
