"""CNN1d on waveforms of generated sounds, for comparison with spectrograms.

flaxdl train --config sounds_cnn1d

Test accuracy: 65.4 % ± 1.1 (five seeds, 64.4 to 67.0) on sounds with signal-to-noise ratios from 0
to 30 dB; about three minutes on two busy CPU cores (AMD EPYC; 73 s of processor time, including
compilation).
"""

from flaxdl import Config
from flaxdl.data import Sounds, Waveforms
from flaxdl.models import CNN1d
from flaxdl.training import AdamW, Cosine, Selection

config = Config(
    model=CNN1d(num_classes=None, filters=(32, 32, 32), kernel_sizes=(64, 5, 3)),
    data=Sounds(),
    transform=Waveforms(sample_rate=8000, seconds=0.5),
    optimizer=AdamW(
        learning_rate=5e-3, schedule=Cosine(warmup_steps=20), weight_decay=0.05, clip_norm=1.0
    ),
    batch_size=32,
    epochs=10,
    evaluate_every=2,
    selection=Selection(metric="loss"),
)
