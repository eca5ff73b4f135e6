"""ResNet-18 with the stem for small images on CIFAR-10.

python train.py --config configs/cifar10_resnet18.py

TFDS downloads the data (163 MB). Batch, weight decay and augmentation are those of the paper's
section 4.2 (He et al., 2015) but for a cosine over 200 epochs and a weight decay of 5e-4, as
https://github.com/kuangliu/pytorch-cifar has them. The result has not been measured here.
"""

from flaxdl import Config
from flaxdl.data import Images, Tfds
from flaxdl.models import ResNet18
from flaxdl.training import SGD, Cosine

config = Config(
    model=ResNet18(num_classes=10, small_images=True),
    data=Tfds("cifar10"),
    transform=Images(
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), crop_padding=4, flip=True
    ),
    optimizer=SGD(learning_rate=0.1, momentum=0.9, schedule=Cosine(), weight_decay=5e-4),
    batch_size=128,
    epochs=200,
    log_every=100,
)
