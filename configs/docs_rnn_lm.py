"""Character-level recurrent language model (GRU) of Python's documentation.

flaxdl train --config docs_rnn_lm

Test loss: 1.595 ± 0.009 bits per character on Python 3.11's documentation (three seeds, 1.586 to
1.604); one to two minutes on two CPU cores. The Transformer of docs_transformer_lm, with 2.2 times
as many parameters, reaches 1.996, or 1.98 on the same characters with the same context (one seed).

The first 64 characters of each window are the end of the previous one, at weight 0. Reading the
test split from start to end instead, with the state carried, gives the same loss within 0.002 bits.

For another text, set --data.path FILE, and set --model.vocab-size as stated in the error message.
"""

from flaxdl import Config
from flaxdl.data import Documents, Text
from flaxdl.models import RNNLM
from flaxdl.training import AdamW, Cosine, LanguageModeling, Selection

config = Config(
    model=RNNLM(vocab_size=128, embedding_size=64, hidden_size=256, cell="gru"),
    data=Documents(window=192, burn_in=64),
    transform=Text("characters", max_length=192),
    task=LanguageModeling(prompt="The statement"),
    optimizer=AdamW(
        learning_rate=6e-3, schedule=Cosine(warmup_steps=50), weight_decay=0.1, clip_norm=1.0
    ),
    batch_size=32,
    epochs=8,
    selection=Selection(metric="loss"),
)
