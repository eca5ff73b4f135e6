"""ResNet pretrained on printed characters, fine-tuned on handwritten digits.

flaxdl train --config digits_transfer

Requires runs/glyphs_resnet, a run of the config glyphs_resnet. Test accuracy: 99.4 % (one seed), in
about one minute on two CPU cores. benchmarks/transfer.py measures the accuracy with fewer training
images.
"""

from flaxdl import Config, Init
from flaxdl.data import Images, Tfds
from flaxdl.models import ResNet
from flaxdl.training import AdamW, Cosine, Selection

config = Config(
    model=ResNet(num_classes=10, depths=(1, 1, 1, 1)),
    data=Tfds("digits"),
    # Same size, channels and normalization as in pretraining.
    transform=Images(mean=(0.5,), std=(0.3,), size=32, channels=3, rotation=15.0, crop_padding=4),
    init=Init(weights="runs/glyphs_resnet", omit=("fc.*",)),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup_steps=20), clip_norm=1.0),
    batch_size=64,
    epochs=10,
    evaluate_every=5,
    selection=Selection(metric="loss"),
)
