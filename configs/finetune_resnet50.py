"""Fine-tuning of an ImageNet ResNet-50 to classify your own images.

flaxdl train --config finetune_resnet50

Put the images into images/CLASS/NAME.jpg, or set --data.path to another folder. Trains the head
first, then all layers, with lower learning rates for earlier layers. Downloads the weights (98 MB).
The accuracy depends on the images and has not been measured.
"""

from flaxdl import Config, Init
from flaxdl.data import ImageFolder, Images
from flaxdl.models import ResNet50
from flaxdl.training import AdamW, Classification, Cosine

config = Config(
    model=ResNet50(num_classes=None),  # inferred from the data
    data=ImageFolder("images"),
    transform=Images(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=224,
        resize=256,
        min_scale=0.35,
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
