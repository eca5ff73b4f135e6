"""The residual block of the document: two convolutions around which the input skips.

Legend: B batch, H height, W width, C channels.
"""

import flax.linen as nn
import jax

from flaxdl.checks import check_shape
from flaxdl.layers.convolution import Conv
from flaxdl.layers.normalization import BatchNorm


class ResidualBlock(nn.Module):
    """Adds its input to what two 3 x 3 convolutions make of it: relu(block(x) + x).

    Where the block's gradient vanishes, the sum still passes the gradient on to what is below (He
    et al., "Deep Residual Learning for Image Recognition", 2015). The blocks of the ResNets, with
    strides and projections, are in `flaxdl.models.resnet`.
    """

    channels: int
    """Channels of the input, and so of the output."""

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
