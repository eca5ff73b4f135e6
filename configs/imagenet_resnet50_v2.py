"""ResNet-50 on ImageNet, with the training recipe of torchvision's IMAGENET1K_V2 weights.

flaxdl train --config imagenet_resnet50_v2

torchvision reports 80.858 % top-1 accuracy; that of flaxdl has not been measured. Unlike in
torchvision, the learning rate changes at every step, warmup starts near 0 instead of at 0.005, and
1 % of the training images are held out. Devices with too little memory need `--accumulate-steps`.
"""

from flaxdl import Config
from flaxdl.data import Images, Tfds, TrivialAugmentWide
from flaxdl.models import ResNet50
from flaxdl.training import EMA, SGD, Classification, Cosine

WARMUP_STEPS = 6190  # 5 epochs

config = Config(
    model=ResNet50(num_classes=1000),
    data=Tfds("imagenet2012", validation_fraction=0.01, test="validation"),
    transform=Images(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=224,
        resize=232,
        train_size=176,
        min_scale=0.08,
        flip=True,
        augment=TrivialAugmentWide(interpolation="bilinear"),
        random_erasing=0.1,
        mixup_alpha=0.2,
        cutmix_alpha=1.0,
    ),
    task=Classification(label_smoothing=0.1),
    optimizer=SGD(
        learning_rate=0.5,
        schedule=Cosine(warmup_steps=WARMUP_STEPS),
        weight_decay=2e-5,
        no_decay=("*bn?.*", "*.downsample.1.*"),
    ),
    batch_size=1024,
    epochs=600,
    repeated_augmentation=4,
    ema=EMA(decay=0.99891, every=32, warmup_steps=WARMUP_STEPS),
    log_every=100,
)
