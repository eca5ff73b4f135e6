"""A bidirectional LSTM on SST-2: is a sentence about a film for it or against it?

python train.py --config configs/sst2_lstm.py

TFDS downloads the data (7 MB). The labels of GLUE's test set are secret, so its validation set is
the test, and a part of the training set is held out to choose by. The result has not been measured
here.
"""

from flaxdl import Config
from flaxdl.data import Text, Tfds
from flaxdl.models import TextRNN
from flaxdl.training import AdamW, Cosine

config = Config(
    # Final states, since the last time step that the document reads is mostly padding.
    model=TextRNN(
        vocab_size=15_000,
        embedding_size=128,
        hidden_size=128,
        num_classes=2,
        cell="lstm",
        num_layers=2,
        dropout=0.5,
        pooling="final_states",
    ),
    data=Tfds("glue/sst2", inputs="sentence", label="label", test="validation"),
    transform=Text("words", max_length=64, max_vocabulary=15_000, lowercase=True),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(), weight_decay=0.05, clip_norm=1.0),
    batch_size=64,
    epochs=5,
    log_every=200,
)
