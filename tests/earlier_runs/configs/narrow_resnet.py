"""A network with batch normalization defined here, on small images in a file: 36 steps.

Runs in tests/earlier_runs; see make.py there.
"""

import flax.linen as nn

from flaxdl import Config
from flaxdl.data import Arrays, Images
from flaxdl.layers import Conv, Dropout, Linear, ResidualBlock, adaptive_avg_pool
from flaxdl.training import SGD, Cosine


class NarrowResNet(nn.Module):
    """A convolution, a residual block and a linear layer; 819 parameters."""

    num_classes: int = 3
    """Number of classes."""

    @nn.compact
    def __call__(self, images, train=False):
        """Maps images [B, 8, 8, 1] to logits [B, num_classes]."""
        x = nn.relu(Conv(6, 3, padding=1, name="conv1")(images))
        x = ResidualBlock(6, name="layer1")(x, train)
        x = adaptive_avg_pool(x, 2)  # [B, 2, 2, 6]
        x = Dropout(0.1, name="dropout")(x.reshape(x.shape[0], -1), train)
        return Linear(self.num_classes, name="fc")(x)


config = Config(
    model=NarrowResNet(),
    data=Arrays("data/bands.npz"),
    transform=Images(crop_padding=1, flip=True),
    optimizer=SGD(
        learning_rate=0.04, schedule=Cosine(warmup_steps=6), weight_decay=1e-3, clip_norm=2.0
    ),
    batch_size=16,
    epochs=6,
    evaluate_every=1.5,
    log_every=4,
    keep_checkpoints=1,
)
