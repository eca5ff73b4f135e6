"""ResNets, as in torchvision.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2015. In bottleneck blocks,
the 3 x 3 convolution has the stride ("ResNet v1.5").

Legend: B batch, H height, W width, C channels, K classes.
"""

import flax.linen as nn
import jax

from flaxdl.layers import (
    BatchNorm,
    Conv,
    DropPath,
    Linear,
    adaptive_avg_pool,
    drop_path_rates,
    max_pool,
)
from flaxdl.layers.initializers import kaiming_normal
from flaxdl.models.images import check_images
from flaxdl.models.sizes import required_size

STAGE_FEATURES = (64, 128, 256, 512)


def conv(features: int, kernel_size: int, *, stride: int = 1, name: str) -> Conv:
    """Returns a convolution without bias, padded so that only the stride changes the image size."""
    return Conv(
        features,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        use_bias=False,
        kernel_init=kaiming_normal,
        name=name,
    )


class BasicBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions."""

    features: int
    """Number of output channels of both convolutions."""
    stride: int = 1
    """Stride of the first convolution."""
    drop_path: float = 0.0
    """Probability of dropping the convolutions' output for an example, as in `DropPath`."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        x = conv(self.features, 3, stride=self.stride, name="conv1")(inputs)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        x = conv(self.features, 3, name="conv2")(x)
        x = BatchNorm(name="bn2")(x, train)
        x = DropPath(self.drop_path, name="drop_path")(x, train)

        shortcut = inputs
        if shortcut.shape != x.shape:
            shortcut = conv(self.features, 1, stride=self.stride, name="downsample.0")(shortcut)
            shortcut = BatchNorm(name="downsample.1")(shortcut, train)
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """Residual block of a 3 x 3 convolution between two 1 x 1 convolutions (bottleneck)."""

    features: int
    """Number of output channels of the 3 x 3 convolution; the block has four times as many."""
    stride: int = 1
    """Stride of the 3 x 3 convolution."""
    drop_path: float = 0.0
    """Probability of dropping the convolutions' output for an example, as in `DropPath`."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 features]."""
        x = conv(self.features, 1, name="conv1")(inputs)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        x = conv(self.features, 3, stride=self.stride, name="conv2")(x)
        x = nn.relu(BatchNorm(name="bn2")(x, train))
        x = conv(4 * self.features, 1, name="conv3")(x)
        x = BatchNorm(name="bn3")(x, train)
        x = DropPath(self.drop_path, name="drop_path")(x, train)

        shortcut = inputs
        if shortcut.shape != x.shape:
            shortcut = conv(4 * self.features, 1, stride=self.stride, name="downsample.0")(shortcut)
            shortcut = BatchNorm(name="downsample.1")(shortcut, train)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """ResNet: stem, four stages of residual blocks, global average pooling and a linear layer."""

    num_classes: int | None = 1000
    """Number of classes; inferred from the data if None."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Number of blocks in each stage."""
    bottleneck: bool = False
    """Use bottleneck blocks instead of basic blocks."""
    small_images: bool = False
    """Use a 3 x 3 stem without downsampling, for small images such as CIFAR's 32 x 32."""
    remat: bool = False
    """Gradient checkpointing: recompute each block in the backward pass to save memory."""
    drop_path_rate: float = 0.0
    """Drop path rate (stochastic depth) of the last block, linear from 0 in the first block."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] of any size to logits [B, K]; training updates `batch_stats`.

        Raises:
            UserError: if the images do not have four axes.
        """
        check_images(images)
        # Shapes in comments are for images of 224 x 224, or 56 x 56 with the small stem.
        if self.small_images:
            x = conv(64, 3, name="conv1")(images)
        else:
            x = conv(64, 7, stride=2, name="conv1")(images)  # [B, 112, 112, 64]
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        if not self.small_images:
            x = max_pool(x, 3, stride=2, padding=1)  # [B, 56, 56, 64]

        Block = Bottleneck if self.bottleneck else BasicBlock
        if self.remat:
            Block = nn.remat(Block, static_argnums=2)  # train; argument 0 is the module itself
        rates = iter(drop_path_rates(self.drop_path_rate, sum(self.depths)))
        for stage, (features, depth) in enumerate(zip(STAGE_FEATURES, self.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(features, stride, next(rates), name=f"layer{stage + 1}.{index}")(x, train)
        x = adaptive_avg_pool(x, 1)[:, 0, 0]  # [B, 512], or [B, 2048] with bottlenecks
        return Linear(required_size("num_classes", self.num_classes), name="fc")(x)


# Parameter counts are for 1000 classes and three input channels.


class ResNet18(ResNet):
    """ResNet-18: 11,689,512 parameters.

    >>> model = flaxdl.models.ResNet18(num_classes=10, small_images=True)
    >>> images = jnp.zeros((2, 32, 32, 3))  # [B, H, W, C]
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), images)  # of the variables
    >>> jax.eval_shape(model.apply, shapes, images).shape
    (2, 10)
    """

    depths: tuple[int, int, int, int] = (2, 2, 2, 2)


class ResNet34(ResNet):
    """ResNet-34: 21,797,672 parameters."""

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)


class ResNet50(ResNet):
    """ResNet-50: 25,557,032 parameters."""

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    bottleneck: bool = True


class ResNet101(ResNet):
    """ResNet-101: 44,549,160 parameters."""

    depths: tuple[int, int, int, int] = (3, 4, 23, 3)
    bottleneck: bool = True


class ResNet152(ResNet):
    """ResNet-152: 60,192,808 parameters."""

    depths: tuple[int, int, int, int] = (3, 8, 36, 3)
    bottleneck: bool = True
