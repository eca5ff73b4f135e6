"""VGG networks, as in torchvision.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014.

Legend: B batch, H height, W width, C channels, K classes.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from flaxdl.layers import BatchNorm, Conv, Dropout, Linear, adaptive_avg_pool, max_pool
from flaxdl.layers.initializers import constant, kaiming_normal, normal
from flaxdl.models.images import check_images, flatten_channels_first
from flaxdl.models.sizes import required_size

STAGE_FEATURES = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG: five stages of 3 x 3 convolutions and max pooling, then three linear layers."""

    num_classes: int | None = 1000
    """Number of classes; inferred from the data if None."""
    depths: tuple[int, int, int, int, int] = (1, 1, 2, 2, 2)
    """Number of convolutions in each stage."""
    batch_norm: bool = False
    """Add BatchNorm after each convolution."""
    dropout: float = 0.5
    """Dropout rate after each of the first two linear layers."""

    tensor_axes: ClassVar[dict[str, int]] = {"classifier.0.*": 0, "classifier.3.weight": 1}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K].

        Raises:
            UserError: if the images do not have four axes, or are smaller than 32 x 32.
        """
        check_images(images, smallest=32)
        x = images
        index = 0  # position in torchvision's nn.Sequential, which is part of the name
        for features, depth in zip(STAGE_FEATURES, self.depths, strict=True):
            for _ in range(depth):
                x = Conv(
                    features,
                    3,
                    padding=1,
                    kernel_init=kaiming_normal,
                    bias_init=constant(0.0),
                    name=f"features.{index}",
                )(x)
                if self.batch_norm:
                    x = BatchNorm(name=f"features.{index + 1}")(x, train)
                x = nn.relu(x)
                index += 3 if self.batch_norm else 2
            x = max_pool(x, 2)
            index += 1
        x = adaptive_avg_pool(x, 7)  # [B, 7, 7, 512] for any image size

        x = flatten_channels_first(x)  # [B, 25088]
        x = nn.relu(self._linear(4096, "classifier.0")(x))
        x = Dropout(self.dropout, name="classifier.2")(x, train)
        x = nn.relu(self._linear(4096, "classifier.3")(x))
        x = Dropout(self.dropout, name="classifier.5")(x, train)
        return self._linear(required_size("num_classes", self.num_classes), "classifier.6")(x)

    def _linear(self, features: int, name: str) -> Linear:
        return Linear(features, kernel_init=normal(0.01), bias_init=constant(0.0), name=name)


# Parameter counts are for 1000 classes and three input channels, without and with BatchNorm.


class VGG11(VGG):
    """VGG-11 (configuration A): 132,863,336 parameters, or 132,868,840 with BatchNorm."""

    depths: tuple[int, int, int, int, int] = (1, 1, 2, 2, 2)


class VGG13(VGG):
    """VGG-13 (configuration B): 133,047,848 parameters, or 133,053,736 with BatchNorm."""

    depths: tuple[int, int, int, int, int] = (2, 2, 2, 2, 2)


class VGG16(VGG):
    """VGG-16 (configuration D): 138,357,544 parameters, or 138,365,992 with BatchNorm."""

    depths: tuple[int, int, int, int, int] = (2, 2, 3, 3, 3)


class VGG19(VGG):
    """VGG-19 (configuration E): 143,667,240 parameters, or 143,678,248 with BatchNorm."""

    depths: tuple[int, int, int, int, int] = (2, 2, 4, 4, 4)
