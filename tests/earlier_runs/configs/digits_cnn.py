"""A convolutional network defined here, on scikit-learn's handwritten digits: 40 steps.

Runs in tests/earlier_runs; see make.py there.
"""

import flax.linen as nn

from flaxdl import Config
from flaxdl.data import Images, Tfds
from flaxdl.layers import Conv, Dropout, Linear, max_pool
from flaxdl.training import SGD, Classification, StepDecay


class NarrowCNN(nn.Module):
    """Two convolutions and a linear layer; 1,020 parameters."""

    num_classes: int = 10
    """Number of classes."""

    @nn.compact
    def __call__(self, images, train=False):
        """Maps images [B, 8, 8, 1] to logits [B, num_classes]."""
        x = nn.relu(Conv(6, 3, padding=1, name="conv1")(images))
        x = max_pool(x, 2)  # [B, 4, 4, 6]
        x = nn.relu(Conv(10, 3, padding=1, name="conv2")(x))
        x = max_pool(x, 2)  # [B, 2, 2, 10]
        x = x.reshape(x.shape[0], -1)  # [B, 40]
        x = Dropout(0.1, name="dropout")(x, train)
        return Linear(self.num_classes, name="fc")(x)


config = Config(
    model=NarrowCNN(),
    data=Tfds("digits"),
    transform=Images(mean=(0.305,), std=(0.376,), rotation=10.0),
    task=Classification(label_smoothing=0.1),
    optimizer=SGD(learning_rate=0.5, momentum=0.0, schedule=StepDecay()),
    batch_size=32,
    epochs=1,
    evaluate_every=0.25,
    log_every=5,
    keep_checkpoints=1,
)
