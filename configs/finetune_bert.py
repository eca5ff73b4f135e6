"""BERT learns to tell the classes of your own texts.

python train.py --config configs/finetune_bert.py

Takes the columns "text" and "label" of texts.csv, or of any table of --data.path, --data.text and
--data.label. The recipe is that of the paper; weights and vocabulary are downloaded (440 MB). The
result depends on the texts and was not measured.
"""

from flaxdl import Config, Init
from flaxdl.data import Text, TextTable
from flaxdl.models import BertForSequenceClassification
from flaxdl.training import AdamW, LinearDecay

config = Config(
    model=BertForSequenceClassification(num_classes=None),  # as many as the data have
    data=TextTable("texts.csv", text="text", label="label"),
    # Batches of short texts stay short: three compilations, and little padding.
    transform=Text("bert-base-uncased", max_length=128, padded_lengths=(32, 64)),
    init=Init(weights="bert-base-uncased", omit=("classifier.*",)),
    optimizer=AdamW(
        learning_rate=2e-5,
        schedule=LinearDecay(warmup_fraction=0.1),
        weight_decay=0.01,
        no_decay=("*.bias", "*.LayerNorm.weight"),
        clip_norm=1.0,
    ),
    batch_size=32,
    epochs=3.0,
)
