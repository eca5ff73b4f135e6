"""SimpleCNN on CIFAR-10.

flaxdl train --config cifar10_cnn

TFDS downloads the data (163 MB). The accuracy has not been measured.
"""

from flaxdl import Config
from flaxdl.data import Images, Tfds
from flaxdl.models import SimpleCNN
from flaxdl.training import AdamW, Cosine

config = Config(
    model=SimpleCNN(num_classes=10, dropout=0.5),
    data=Tfds("cifar10"),
    transform=Images(
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop_padding=4, flip=True
    ),
    optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(), weight_decay=0.05, clip_norm=1.0),
    batch_size=128,
    epochs=50,
    log_every=100,
)
