"""72 steps of an LSTM with dropout between its layers, often evaluated and saved."""

import numpy as np

from flaxdl import Config
from flaxdl.data import Arrays
from flaxdl.models import SimpleRNN
from flaxdl.training import SGD

rng = np.random.default_rng(0)
labels = rng.integers(0, 3, 300).astype(np.int32)
series = rng.standard_normal((300, 12, 5)).astype(np.float32) + labels[:, None, None]

config = Config(
    model=SimpleRNN(hidden_size=16, num_classes=3, cell="lstm", num_layers=2, dropout=0.3),
    data=Arrays.from_memory(
        train_inputs=series[:200],
        train_label=labels[:200],
        test_inputs=series[200:],
        test_label=labels[200:],
    ),
    optimizer=SGD(learning_rate=0.05, momentum=0.9),
    batch_size=15,
    epochs=6.0,
    evaluate_every=0.75,
    log_every=5,
    keep_checkpoints=1,
)
