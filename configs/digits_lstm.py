"""LSTM that reads scikit-learn's handwritten digits row by row.

flaxdl train --config digits_lstm

Test accuracy: 98.28 % ± 0.60 (five seeds, 97.50 to 98.89), in 21 to 24 s on two CPU cores.
"""

from flaxdl import Config
from flaxdl.data import ImageRows, Tfds
from flaxdl.models import SimpleRNN
from flaxdl.training import AdamW, Cosine, Selection

config = Config(
    model=SimpleRNN(hidden_size=128, num_classes=10, cell="lstm", num_layers=2, dropout=0.2),
    data=Tfds("digits"),
    transform=ImageRows(mean=(0.305,), std=(0.376,), rotation=10.0, crop_padding=1),
    optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(), weight_decay=0.05, clip_norm=1.0),
    batch_size=128,
    epochs=100,
    evaluate_every=10,
    selection=Selection(metric="loss"),
)
