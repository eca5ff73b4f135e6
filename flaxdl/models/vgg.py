"""The VGG networks, as torchvision builds them.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014.

Legend: B batch, H height, W width, C channels, K classes.
"""

from typing import ClassVar

import flax.linen as nn
import jax

from flaxdl.layers import BatchNorm, Conv, Dropout, Linear, adaptive_avg_pool, max_pool
from flaxdl.layers.initializers import constant, kaiming_normal, normal
from flaxdl.models.images import check_images, flatten_channels_first
from flaxdl.models.sizes import known_size

STAGE_FEATURES = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions, each halving the image, then three linear layers."""

    num_classes: int | None = 1000
    """Number of logits per image; None takes it from the data of a run."""
    depths: tuple[int, int, int, int, int] = (1, 1, 2, 2, 2)
    """Number of convolutions in each stage."""
    batch_norm: bool = False
    """Whether BatchNorm follows each convolution."""
    dropout: float = 0.5
    """Share of the hidden units of the classifier dropped in training."""

    tensor_axes: ClassVar[dict[str, int]] = {"classifier.0.*": 0, "classifier.3.weight": 1}

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K].

        Raises:
            UserError: if the images have another rank or are smaller than 32 x 32.
        """
        check_images(images, smallest=32)
        x = images
        index = 0  # position in torchvision's flat list of modules, where the names come from
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
        x = adaptive_avg_pool(x, 7)  # [B, 7, 7, 512], whatever the size of the images

        x = flatten_channels_first(x)  # [B, 25088]
        x = nn.relu(self._linear(4096, "classifier.0")(x))
        x = Dropout(self.dropout, name="classifier.2")(x, train)
        x = nn.relu(self._linear(4096, "classifier.3")(x))
        x = Dropout(self.dropout, name="classifier.5")(x, train)
        return self._linear(known_size("num_classes", self.num_classes), "classifier.6")(x)

    def _linear(self, features: int, name: str) -> Linear:
        return Linear(features, kernel_init=normal(0.01), bias_init=constant(0.0), name=name)


# Parameters with 1000 classes and three input channels, without and with BatchNorm.


class VGG11(VGG):
    """Configuration A of the paper: 132,863,336 or 132,868,840 parameters."""

    depths: tuple[int, int, int, int, int] = (1, 1, 2, 2, 2)


class VGG13(VGG):
    """Configuration B of the paper: 133,047,848 or 133,053,736 parameters."""

    depths: tuple[int, int, int, int, int] = (2, 2, 2, 2, 2)


class VGG16(VGG):
    """Configuration D of the paper: 138,357,544 or 138,365,992 parameters."""

    depths: tuple[int, int, int, int, int] = (2, 2, 3, 3, 3)


class VGG19(VGG):
    """Configuration E of the paper: 143,667,240 or 143,678,248 parameters."""

    depths: tuple[int, int, int, int, int] = (2, 2, 4, 4, 4)
