"""GRU that forecasts a year of monthly sea surface temperatures (El Niño) from two years.

flaxdl train --config el_nino_gru

Test MAE: 0.805 °C ± 0.022 (five seeds, 0.778 to 0.828), in 15 to 28 s on two busy CPU cores. MASE
is 0.667 ± 0.018. The MAE is 0.733 ± 0.020 times that of the seasonal naive forecast, and 1.034 ±
0.029 times that of a linear autoregression solved by least squares (`benchmarks/forecasts.py`): on
the 148 windows of the test part, the GRU is no better than a linear model.

Needs `pip install 'flaxdl[series]'`.
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
