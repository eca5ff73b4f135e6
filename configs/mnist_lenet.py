"""LeNet-5 on MNIST, the digits it was made for.

python train.py --config configs/mnist_lenet.py

TFDS downloads the data (12 MB). The paper reports 0.95 % errors on the test set, or 0.8 % with
distorted images (LeCun et al., 1998); what this recipe reaches has not been measured here.
"""

from flaxdl import Config
from flaxdl.data import Images, Tfds
from flaxdl.models import LeNet5
from flaxdl.training import AdamW, Cosine

config = Config(
    model=LeNet5(num_classes=10),
    data=Tfds("mnist"),
    transform=Images(mean=(0.1307,), std=(0.3081,), size=32, rotation=10.0, crop_padding=2),
    optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(), weight_decay=0.05),
    batch_size=128,
    epochs=20,
    log_every=100,
)
