"""Bidirectional LSTM on SST-2: sentiment classification of sentences from movie reviews.

flaxdl train --config sst2_lstm

TFDS downloads the data (7 MB). The labels of GLUE's test set are not public, so its validation set
is used as the test split, and a part of the training set is held out for validation. The accuracy
has not been measured.
"""

from flaxdl import Config
from flaxdl.data import Text, Tfds
from flaxdl.models import TextRNN
from flaxdl.training import AdamW, Cosine

config = Config(
    # Final states, since the last time step is mostly padding.
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
