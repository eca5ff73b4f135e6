"""ResNet-18 with the small-image stem on CIFAR-10, with a modern training recipe.

flaxdl train --config cifar10_resnet18

TFDS downloads the data (163 MB). The basis is section 4.2 of the paper (He et al., 2015) with a
cosine schedule over 200 epochs and a weight decay of 5e-4, as in
https://github.com/kuangliu/pytorch-cifar. Label smoothing, TrivialAugment, random erasing, mixup or
CutMix, and moving averages (EMA) are added. The accuracy has not been measured.
"""

from flaxdl import Config
from flaxdl.data import Images, Tfds, TrivialAugmentWide
from flaxdl.models import ResNet18
from flaxdl.training import EMA, SGD, Classification, Cosine

config = Config(
    model=ResNet18(num_classes=10, small_images=True),
    data=Tfds("cifar10"),
    transform=Images(
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        crop_padding=4,
        flip=True,
        augment=TrivialAugmentWide(interpolation="bilinear"),
        random_erasing=0.1,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
    ),
    task=Classification(label_smoothing=0.1),
    optimizer=SGD(
        learning_rate=0.1, momentum=0.9, schedule=Cosine(warmup_steps=350), weight_decay=5e-4
    ),
    ema=EMA(decay=0.999),
    batch_size=128,
    epochs=200,
    log_every=100,
)
