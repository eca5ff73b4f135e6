"""Fine-tuning of BERT to classify your own texts.

flaxdl train --config finetune_bert

Reads the columns "text" and "label" of texts.csv; for another table, set --data.path, --data.text
and --data.label. The recipe follows the BERT paper. Downloads weights and vocabulary (440 MB). The
accuracy depends on the texts and has not been measured.
"""

from flaxdl import Config, Init
from flaxdl.data import Text, TextTable
from flaxdl.models import BertForSequenceClassification
from flaxdl.training import AdamW, LinearDecay

config = Config(
    model=BertForSequenceClassification(num_classes=None),  # inferred from the data
    data=TextTable("texts.csv", text="text", label="label"),
    # Length bucketing reduces padding, at the cost of three compilations.
    transform=Text("bert-base-uncased", max_length=128, bucket_lengths=(32, 64)),
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
