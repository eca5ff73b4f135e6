"""Linear autoregression as a baseline of `el_nino_gru`, on the same windows.

flaxdl train --config el_nino_linear

Test MAE: 0.777 °C ± 0.004 (five seeds, 0.773 to 0.782), in 10 to 14 s on two busy CPU cores. MASE
is 0.644 ± 0.003. The MAE is 0.708 ± 0.003 times that of the seasonal naive forecast, and 0.998 ±
0.005 times that of the same model solved by least squares (`benchmarks/forecasts.py`).

Needs `pip install 'flaxdl[series]'`.
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
