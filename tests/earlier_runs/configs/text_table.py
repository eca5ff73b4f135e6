"""A bidirectional GRU that tells questions, commands and statements apart: 35 steps.

Runs in tests/earlier_runs; see make.py there.
"""

from flaxdl import Config
from flaxdl.data import Text, TextTable
from flaxdl.models import TextRNN
from flaxdl.training import AdamW, Cosine, Rewind

config = Config(
    model=TextRNN(
        vocab_size=40, embedding_size=6, hidden_size=6, num_classes=3, pooling="final_states"
    ),
    data=TextTable("data/sentences.csv", text="sentence", label="kind", test_fraction=0.2),
    transform=Text("words", max_length=12, lowercase=True, padded_lengths=(6,)),
    optimizer=AdamW(learning_rate=2e-2, schedule=Cosine(final_factor=0.1), no_decay=("*.bias*",)),
    batch_size=8,
    epochs=5,
    evaluate_every=1,
    log_every=4,
    rewind=Rewind(factor=4.0),
    keep_checkpoints=1,
)
