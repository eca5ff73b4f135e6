"""AlexNet on ImageNet, with torchvision's training recipe.

flaxdl train --config imagenet_alexnet

The recipe follows torchvision's references/classification: batch size 256, 90 epochs, SGD, learning
rate 0.01 divided by 10 after 30 and 60 epochs, random resized crops of 224 pixels and flips;
evaluation on 224-pixel center crops of images resized to 256. torchvision reports 56.522 % top-1
accuracy; that of flaxdl has not been measured. TFDS prints where to put the ImageNet files. The
validation split of ImageNet is used as the test split, and 1 % of the training images are held out
for validation.
"""

from flaxdl import Config
from flaxdl.data import Images, Tfds
from flaxdl.models import AlexNet
from flaxdl.training import SGD, StepDecay

config = Config(
    model=AlexNet(num_classes=1000),
    data=Tfds("imagenet2012", validation_fraction=0.01, test="validation"),
    transform=Images(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=224,
        resize=256,
        min_scale=0.08,
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
