"""An LSTM that reads small PNG files row by row: 36 steps.

Runs in tests/earlier_runs; see make.py there.
"""

from flaxdl import Config
from flaxdl.data import ImageFolder, ImageRows
from flaxdl.models import SimpleRNN
from flaxdl.training import SGD, LinearDecay, Selection

config = Config(
    model=SimpleRNN(hidden_size=6, num_classes=3, cell="lstm"),
    data=ImageFolder("data/patterns", validation_fraction=0.2, test_fraction=0.2, channels=1),
    transform=ImageRows(
        mean=(0.3,), std=(0.3,), size=8, shorter_side=9, smallest_area=0.7, crop_padding=1
    ),
    optimizer=SGD(learning_rate=1.0, momentum=0.0, schedule=LinearDecay()),
    batch_size=8,
    epochs=12,
    seed=1,
    evaluate_every=2,
    log_every=4,
    selection=Selection(metric="loss"),
    keep_checkpoints=1,
)
