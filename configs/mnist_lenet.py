"""LeNet-5 on MNIST.

flaxdl train --config mnist_lenet

TFDS downloads the data (12 MB). The paper reports a test error of 0.95 %, or 0.8 % with distorted
images (LeCun et al., 1998); the accuracy of this recipe has not been measured.
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
