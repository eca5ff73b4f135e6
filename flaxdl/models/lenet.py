"""LeNet-5, the convolutional network that read cheques in 1998.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition".

Legend: B batch, H height, W width, C channels, K classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.layers import Conv, Linear, avg_pool
from flaxdl.models.images import check_images, flatten_channels_first
from flaxdl.models.sizes import known_size


@jax.custom_jvp
def scaled_tanh(x: jax.Array) -> jax.Array:
    """Squashes to ±1.7159, such that ±1 stays ±1: the paper's activation (appendix A)."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


# In terms of the result, which is kept anyway; the tanh inside it would be computed again.
scaled_tanh.defjvps(lambda dx, y, x: 2 / 3 * (1.7159 - y * y / 1.7159) * dx)


class LeNet5(nn.Module):
    """Two convolutions with average pooling, then three linear layers.

    61,706 parameters on the paper's images, 32 x 32 with one channel (digits of 28 x 28 are padded
    by 2 on each side). Any size from 16 x 16 works; the first linear layer follows it.

    The activation is the paper's scaled tanh. Three of its details have gone out of use, and are
    left out here as nearly everywhere: trained coefficients in the pooling, a table of which
    feature maps the second convolution sees, and radial basis functions as output.
    """

    num_classes: int | None = 10
    """Number of logits per image; None takes it from the data of a run."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K]; training and inference are the same.

        Raises:
            UserError: if the images have another rank, are smaller than 16 x 16, or have another
                size than the parameters were made for.
        """
        check_images(images, smallest=16)
        x = scaled_tanh(Conv(6, 5, name="conv1")(images))  # [B, 28, 28, 6] of 32 x 32
        x = avg_pool(x, 2)  # [B, 14, 14, 6]
        x = scaled_tanh(Conv(16, 5, name="conv2")(x))  # [B, 10, 10, 16]
        x = avg_pool(x, 2)  # [B, 5, 5, 16]

        x = flatten_channels_first(x)  # [B, 400]
        x = scaled_tanh(Linear(120, name="fc1")(x))
        x = scaled_tanh(Linear(84, name="fc2")(x))
        return Linear(known_size("num_classes", self.num_classes), name="fc3")(x)
