"""Linear autoregression as a baseline of `el_nino_gru`, on the same windows.

flaxdl train --config el_nino_linear

TODO
"""

from flaxdl import Config
from flaxdl.data import ElNino, Scaling
from flaxdl.models import LinearForecaster
from flaxdl.training import AdamW, Cosine, Forecasting, Selection

config = Config(
    model=LinearForecaster(horizon=None),
    data=ElNino(context=24, horizon=12, season=12, test_fraction=0.25),
    transform=Scaling(),
    task=Forecasting(),
    optimizer=AdamW(learning_rate=1e-2, schedule=Cosine(), weight_decay=0.01, clip_norm=1.0),
    batch_size=32,
    epochs=100,
    evaluate_every=10,
    selection=Selection(metric="mae"),
)
