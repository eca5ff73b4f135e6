"""GRU that forecasts a year of monthly sea surface temperatures (El Niño) from two years.

flaxdl train --config el_nino_gru

TODO
"""

from flaxdl import Config
from flaxdl.data import ElNino, Scaling
from flaxdl.models import RNNForecaster
from flaxdl.training import AdamW, Cosine, Forecasting, Selection

config = Config(
    model=RNNForecaster(horizon=None, hidden_size=32),
    data=ElNino(context=24, horizon=12, season=12, test_fraction=0.25),
    transform=Scaling(),
    task=Forecasting(),
    optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(), weight_decay=0.01, clip_norm=1.0),
    batch_size=32,
    epochs=30,
    evaluate_every=3,
    selection=Selection(metric="mae"),
)
