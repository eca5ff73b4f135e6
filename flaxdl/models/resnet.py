"""The ResNets, as torchvision builds them.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2015; in the bottleneck the
3 x 3 convolution has the stride ("ResNet v1.5").

Legend: B batch, H height, W width, C channels, K classes.
"""

import flax.linen as nn
import jax

from flaxdl.layers import BatchNorm, Conv, Linear, adaptive_avg_pool, max_pool
from flaxdl.layers.initializers import kaiming_normal
from flaxdl.models.images import check_images
from flaxdl.models.sizes import known_size

STAGE_FEATURES = (64, 128, 256, 512)


def conv(features: int, kernel_size: int, *, stride: int = 1, name: str) -> Conv:
    """A convolution without bias that keeps the size of its input but for the stride."""
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
    """Two 3 x 3 convolutions around which the input skips."""

    features: int
    """Channels of the convolutions, and of the output."""
    stride: int = 1
    """Step of the first convolution, by which the image shrinks."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        x = conv(self.features, 3, stride=self.stride, name="conv1")(inputs)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        x = conv(self.features, 3, name="conv2")(x)
        x = BatchNorm(name="bn2")(x, train)

        shortcut = inputs
        if shortcut.shape != x.shape:
            shortcut = conv(self.features, 1, stride=self.stride, name="downsample.0")(shortcut)
            shortcut = BatchNorm(name="downsample.1")(shortcut, train)
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, which narrow its input and widen its output."""

    features: int
    """Channels of the 3 x 3 convolution; the output has four times as many."""
    stride: int = 1
    """Step of the 3 x 3 convolution, by which the image shrinks."""

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 features]."""
        x = conv(self.features, 1, name="conv1")(inputs)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        x = conv(self.features, 3, stride=self.stride, name="conv2")(x)
        x = nn.relu(BatchNorm(name="bn2")(x, train))
        x = conv(4 * self.features, 1, name="conv3")(x)
        x = BatchNorm(name="bn3")(x, train)

        shortcut = inputs
        if shortcut.shape != x.shape:
            shortcut = conv(4 * self.features, 1, stride=self.stride, name="downsample.0")(shortcut)
            shortcut = BatchNorm(name="downsample.1")(shortcut, train)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, the average over positions and a linear layer."""

    num_classes: int | None = 1000
    """Number of logits per image; None takes it from the data of a run."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Number of blocks in each stage."""
    bottleneck: bool = False
    """Whether the blocks are bottlenecks."""
    small_images: bool = False
    """Whether the stem is a 3 x 3 convolution that keeps the size, as for the 32 x 32 of CIFAR."""
    remat: bool = False
    """Whether blocks keep only their input for the backward pass, and are computed anew there."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [B, H, W, C] of any size to logits [B, K]; training updates `batch_stats`.

        Raises:
            UserError: if the images have another rank.
        """
        check_images(images)
        # Sizes are those of images of 224 x 224, or with the small stem of 56 x 56.
        if self.small_images:
            x = conv(64, 3, name="conv1")(images)
        else:
            x = conv(64, 7, stride=2, name="conv1")(images)  # [B, 112, 112, 64]
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        if not self.small_images:
            x = max_pool(x, 3, stride=2, padding=1)  # [B, 56, 56, 64]

        Block = Bottleneck if self.bottleneck else BasicBlock
        if self.remat:
            Block = nn.remat(Block, static_argnums=2)  # train; the module itself is 0
        for stage, (features, depth) in enumerate(zip(STAGE_FEATURES, self.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                x = Block(features, stride, name=f"layer{stage + 1}.{index}")(x, train)
        x = adaptive_avg_pool(x, 1)[:, 0, 0]  # [B, 512], or [B, 2048] after bottlenecks
        return Linear(known_size("num_classes", self.num_classes), name="fc")(x)


# Parameters with 1000 classes and three input channels.


class ResNet18(ResNet):
    """11,689,512 parameters."""

    depths: tuple[int, int, int, int] = (2, 2, 2, 2)


class ResNet34(ResNet):
    """21,797,672 parameters."""

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)


class ResNet50(ResNet):
    """25,557,032 parameters."""

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    bottleneck: bool = True


class ResNet101(ResNet):
    """44,549,160 parameters."""

    depths: tuple[int, int, int, int] = (3, 4, 23, 3)
    bottleneck: bool = True


class ResNet152(ResNet):
    """60,192,808 parameters."""

    depths: tuple[int, int, int, int] = (3, 8, 36, 3)
    bottleneck: bool = True
