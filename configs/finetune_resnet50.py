"""A ResNet-50 that knows ImageNet learns the classes of your own images.

python train.py --config configs/finetune_resnet50.py

Put the images into images/CLASS/NAME.jpg, or name another folder by --data.path. The head learns
first, then everything, the earlier layers more slowly. The weights are downloaded (98 MB). The
result depends on the images and was not measured.
"""

from flaxdl import Config, Init
from flaxdl.data import ImageFolder, Images
from flaxdl.models import ResNet50
from flaxdl.training import AdamW, Classification, Cosine

config = Config(
    model=ResNet50(num_classes=None),  # as many as the data have
    data=ImageFolder("images"),
    transform=Images(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=224,
        shorter_side=256,
        smallest_area=0.35,
        flip=True,
    ),
    task=Classification(label_smoothing=0.1),
    init=Init(weights="resnet50:IMAGENET1K_V2", omit=("fc.*",)),
    freeze=("conv1.*", "bn1.*", "layer*"),
    freeze_epochs=2.0,
    optimizer=AdamW(
        learning_rate=3e-4,
        schedule=Cosine(warmup_steps=20),
        weight_decay=0.05,
        clip_norm=1.0,
        layer_decay=0.85,
    ),
    batch_size=32,
    epochs=10.0,
)
