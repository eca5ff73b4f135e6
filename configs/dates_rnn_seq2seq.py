"""Recurrent encoder-decoder with attention that converts dates in ten written styles to ISO dates.

flaxdl train --config dates_rnn_seq2seq

Test exact match: 100.00 % ± 0.00 (five seeds, all of the 2,000 dates in each); about 150 s on two
busy CPU cores.
"""

from flaxdl import Config
from flaxdl.data import Dates, TextPairs
from flaxdl.models import Seq2SeqRNN
from flaxdl.training import AdamW, Cosine, Selection, SequenceToSequence

config = Config(
    model=Seq2SeqRNN(
        vocab_size=64,
        embedding_size=32,
        hidden_size=96,
        cell="gru",
        attention="additive",
    ),
    data=Dates(),
    transform=TextPairs(max_length=32, max_target_length=11),
    task=SequenceToSequence(),
    optimizer=AdamW(learning_rate=5e-3, schedule=Cosine(warmup_steps=100), clip_norm=1.0),
    batch_size=128,
    epochs=8,
    log_every=100,
    selection=Selection(metric="exact_match"),
)
