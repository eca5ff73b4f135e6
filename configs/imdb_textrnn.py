"""TextRNN on IMDb movie reviews: word-level sentiment classification.

flaxdl train --config imdb_textrnn

TFDS downloads the data (81 MB). The accuracy has not been measured.
"""

from flaxdl import Config
from flaxdl.data import Text, Tfds
from flaxdl.models import TextRNN
from flaxdl.training import AdamW, Cosine

config = Config(
    # Final states, since the last time step is often padding.
    model=TextRNN(
        vocab_size=20_000,
        embedding_size=128,
        hidden_size=128,
        num_classes=2,
        num_layers=2,
        dropout=0.5,
        pooling="final_states",
    ),
    data=Tfds("imdb_reviews"),
    transform=Text("words", max_length=256, max_vocabulary=20_000, lowercase=True),
    optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(), weight_decay=0.05, clip_norm=1.0),
    batch_size=64,
    epochs=5,
)
