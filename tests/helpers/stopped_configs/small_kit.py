"""72 steps of a ResNet block with the whole modern recipe, often evaluated and saved."""

import flax.linen as nn
import numpy as np

from flaxdl import Config
from flaxdl.data import Arrays, Images, TrivialAugmentWide
from flaxdl.layers import BatchNorm, Conv, DropPath, Linear
from flaxdl.training import EMA, SGD, Classification, OneCycle


class SmallResidual(nn.Module):
    """Images [B, 8, 8, 1] to logits [B, 4]."""

    drop_path_rate: float = 0.2

    @nn.compact
    def __call__(self, images, train=False):
        """Logits [B, 4]."""
        x = nn.relu(BatchNorm(name="bn1")(Conv(8, 3, padding=1, name="conv1")(images), train))
        branch = BatchNorm(name="bn2")(Conv(8, 3, padding=1, name="conv2")(x), train)
        x = nn.relu(x + DropPath(self.drop_path_rate, name="drop_path")(branch, train))
        return Linear(4, name="fc")(x.mean((1, 2)))


rng = np.random.default_rng(0)
labels = rng.integers(0, 4, 400).astype(np.int32)
images = (
    rng.integers(0, 150, (400, 8, 8, 1), dtype=np.uint8)
    + 25 * labels.astype(np.uint8)[:, None, None, None]
)

config = Config(
    model=SmallResidual(),
    data=Arrays.from_memory(
        train_inputs=images[:200],
        train_label=labels[:200],
        test_inputs=images[200:],
        test_label=labels[200:],
        validation_inputs=images[200:],
        validation_label=labels[200:],
    ),
    transform=Images(
        size=8,
        min_scale=0.5,
        flip=True,
        train_size=6,
        augment=TrivialAugmentWide(interpolation="bilinear"),
        random_erasing=0.2,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
    ),
    task=Classification(label_smoothing=0.1),
    optimizer=SGD(learning_rate=0.1, schedule=OneCycle(), no_decay=("bn*",), weight_decay=1e-4),
    ema=EMA(decay=0.9, every=3, warmup_steps=5),
    batch_size=20,
    accumulate_steps=2,
    repeated_augmentation=2,
    epochs=7.2,
    evaluate_every=1.3,
    log_every=5,
    keep_checkpoints=1,
)
