"""A ResNet that knows printed letters and digits learns to read handwritten ones.

python train.py --config configs/digits_transfer.py

Needs runs/glyphs_resnet, the run of configs/glyphs_resnet.py. 99.4 % of the test split with one
seed, in about a minute on two CPU cores. With a part of the data: benchmarks/transfer.py.
"""

from flaxdl import Config, Init
from flaxdl.data import Images, Tfds
from flaxdl.models import ResNet
from flaxdl.training import AdamW, Cosine, Selection

config = Config(
    model=ResNet(num_classes=10, depths=(1, 1, 1, 1)),
    data=Tfds("digits"),
    # As large and as colourful as glyphs are, and normalized as they were.
    transform=Images(mean=(0.5,), std=(0.3,), size=32, channels=3, rotation=15.0, crop_padding=4),
    init=Init(weights="runs/glyphs_resnet", omit=("fc.*",)),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup_steps=20), clip_norm=1.0),
    batch_size=64,
    epochs=10,
    evaluate_every=5,
    selection=Selection(metric="loss"),
)
