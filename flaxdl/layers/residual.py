"""Residual block: two convolutions with batch normalization and a skip connection.

Legend: B batch, H height, W width, C channels.
"""

import flax.linen as nn
import jax

from flaxdl.checks import check_shape
from flaxdl.layers.convolution import Conv
from flaxdl.layers.normalization import BatchNorm


class ResidualBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions: relu(block(x) + x).

    The skip connection passes the gradient to earlier layers even if the gradient of the
    convolutions vanishes (He et al., "Deep Residual Learning for Image Recognition", 2015). The
    blocks of the ResNet models, with strides and projections, are in `flaxdl.models.resnet`.
    """

    channels: int
    """Number of input and output channels."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, H, W, C] to the same shape; training updates `batch_stats`.

        Raises:
            UserError: if the inputs do not have `channels` channels.
        """
        check_shape("inputs", inputs, "B H W C", C=self.channels)
        x = Conv(self.channels, 3, padding=1, name="block.0")(inputs)
        x = BatchNorm(name="block.1")(x, train)
        x = nn.relu(x)
        x = Conv(self.channels, 3, padding=1, name="block.3")(x)
        x = BatchNorm(name="block.4")(x, train)
        return nn.relu(x + inputs)
