"""LeNet-5, a convolutional network for reading checks.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.

Legend: B batch, H height, W width, C channels, K classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxdl.layers import Conv, Linear, avg_pool
from flaxdl.models.images import check_images, flatten_channels_first
from flaxdl.models.sizes import required_size


@jax.custom_jvp
def scaled_tanh(x: jax.Array) -> jax.Array:
    """Applies the scaled tanh of the paper (appendix A), which maps 1 to 1 and −1 to −1."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


# The derivative is a function of the output, which is stored anyway; the inner tanh would have to
# be recomputed.
scaled_tanh.defjvps(lambda dx, y, x: 2 / 3 * (1.7159 - y * y / 1.7159) * dx)


class LeNet5(nn.Module):
    """LeNet-5: two convolutions with average pooling, then three linear layers.

    The model has 61,706 parameters for the images of the paper, 32 x 32 with one channel (28 x 28
    digits, padded by 2 on each side). Images may have any size of at least 16 x 16; the first
    linear layer depends on it.

    The activation function is the scaled tanh of the paper. As in most implementations, three
    details of the paper are omitted: trainable coefficients in the pooling, the table of
    connections between the first pooling and the second convolution, and radial basis functions in
    the output layer.
    """

    num_classes: int | None = 10
    """Number of classes; inferred from the data if None."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, K]; `train` has no effect.

        Raises:
            UserError: if the images do not have four axes, are smaller than 16 x 16, or do not have
                the size that the parameters were initialized for.
        """
        check_images(images, smallest=16)
        x = scaled_tanh(Conv(6, 5, name="conv1")(images))  # [B, 28, 28, 6] for 32 x 32
        x = avg_pool(x, 2)  # [B, 14, 14, 6]
        x = scaled_tanh(Conv(16, 5, name="conv2")(x))  # [B, 10, 10, 16]
        x = avg_pool(x, 2)  # [B, 5, 5, 16]

        x = flatten_channels_first(x)  # [B, 400]
        x = scaled_tanh(Linear(120, name="fc1")(x))
        x = scaled_tanh(Linear(84, name="fc2")(x))
        return Linear(required_size("num_classes", self.num_classes), name="fc3")(x)
