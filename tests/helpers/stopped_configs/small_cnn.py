"""80 steps of a CNN with BatchNorm, dropout and augmentation, often evaluated and saved."""

import time
from dataclasses import dataclass

import flax.linen as nn
import numpy as np

from flaxdl import Config
from flaxdl.data import Arrays, Images
from flaxdl.layers import BatchNorm, Conv, Dropout, Linear
from flaxdl.training import AdamW, Cosine


class SmallCNN(nn.Module):
    """Images [B, 8, 8, 1] to logits [B, 4]."""

    dropout: float = 0.3

    @nn.compact
    def __call__(self, images, train=False):
        """Logits [B, 4]."""
        x = BatchNorm(name="bn")(Conv(16, 3, padding=1, name="conv")(images), train)
        x = nn.relu(x).reshape(len(x), -1)
        return Linear(4, name="fc")(Dropout(self.dropout, name="drop")(x, train))


@dataclass(frozen=True)
class SlowArrays(Arrays):
    """Takes its time to load, as files do."""

    def load(self, seed):
        """Loads after a while."""
        for _ in range(50):
            time.sleep(0.01)
        return super().load(seed)


rng = np.random.default_rng(0)
labels = rng.integers(0, 4, 400).astype(np.int32)
images = (
    rng.integers(0, 150, (400, 8, 8, 1), dtype=np.uint8)
    + 25 * labels.astype(np.uint8)[:, None, None, None]
)

config = Config(
    model=SmallCNN(),
    data=SlowArrays.from_memory(
        train_inputs=images[:200],
        train_label=labels[:200],
        test_inputs=images[200:],
        test_label=labels[200:],
        validation_inputs=images[200:],
        validation_label=labels[200:],
    ),
    transform=Images(crop_padding=1, flip=True),
    optimizer=AdamW(learning_rate=1e-2, schedule=Cosine(), clip_norm=1.0),
    batch_size=20,
    epochs=8.0,
    evaluate_every=1.5,
    log_every=4,
)
