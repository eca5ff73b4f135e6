"""VGG-16 on ImageNet, as torchvision trains it.

python train.py --config configs/imagenet_vgg16.py

The recipe is that of torchvision's references/classification: batches of 256, 90 epochs, SGD, a
learning rate of 0.01 that falls to a tenth after 30 and 60 epochs, random resized crops of 224 and
flips; evaluation on the centre 224 of images resized to 256. torchvision publishes 71.592 % top-1;
the result has not been measured here. TFDS says where to put ImageNet's files; its validation
split is the test, and 1 % of the training images are held out to choose by.
"""

from flaxdl import Config
from flaxdl.data import Images, Tfds
from flaxdl.models import VGG16
from flaxdl.training import SGD, StepDecay

config = Config(
    model=VGG16(num_classes=1000),
    data=Tfds("imagenet2012", validation_fraction=0.01, test="validation"),
    transform=Images(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=224,
        shorter_side=256,
        smallest_area=0.08,
        flip=True,
    ),
    optimizer=SGD(
        learning_rate=0.01,
        momentum=0.9,
        schedule=StepDecay(milestones=(1 / 3, 2 / 3), decay=0.1),
        weight_decay=1e-4,
    ),
    batch_size=256,
    epochs=90,
    log_every=100,
)
