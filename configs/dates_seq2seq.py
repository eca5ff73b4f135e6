"""Encoder-decoder transformer that converts dates in ten written styles to ISO dates.

flaxdl train --config dates_seq2seq

Test exact match: 99.81 % ± 0.16 (five seeds, 99.55 to 99.95); at best 126 s on two CPU cores.
"""

from flaxdl import Config
from flaxdl.data import Dates, TextPairs
from flaxdl.models import Seq2SeqTransformer
from flaxdl.training import AdamW, Cosine, Selection, SequenceToSequence

config = Config(
    model=Seq2SeqTransformer(
        vocab_size=64,
        hidden_size=64,
        num_heads=4,
        num_layers=2,
        feed_forward_size=256,
        dropout=0.0,
        norm_first=True,
        positions="learned",
        max_length=32,
    ),
    data=Dates(),
    transform=TextPairs(max_length=32, max_target_length=11),
    task=SequenceToSequence(),
    optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup_steps=100), clip_norm=1.0),
    batch_size=128,
    epochs=10,
    log_every=100,
    selection=Selection(metric="exact_match"),
)
