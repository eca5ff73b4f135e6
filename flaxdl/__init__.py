"""Classic deep learning architectures in Flax, numerically equivalent to PyTorch's.

The top level contains the functions that train, evaluate and use models. Models, layers, data
sources and training components are in `flaxdl.models`, `flaxdl.layers`, `flaxdl.data` and
`flaxdl.training`.
"""

from flaxdl.backend.xla_flags import set_cpu_flags

set_cpu_flags()  # before JAX initializes its backend

from flaxdl.analysis.learning_rate import LearningRateCurve, find_learning_rate  # noqa: E402
from flaxdl.analysis.visualization import visualize  # noqa: E402
from flaxdl.config import Config, Init  # noqa: E402
from flaxdl.config_files import load_config  # noqa: E402
from flaxdl.errors import SaveError, UserError  # noqa: E402
from flaxdl.exporters.exporting import export  # noqa: E402
from flaxdl.pretrained import evaluate_pretrained, load_pretrained  # noqa: E402
from flaxdl.run import Result, train  # noqa: E402
from flaxdl.runs.evaluation import evaluate  # noqa: E402
from flaxdl.runs.forecasts import Forecast  # noqa: E402
from flaxdl.runs.multi_label import MultiLabelPrediction  # noqa: E402
from flaxdl.runs.prediction import (  # noqa: E402
    BeamSearch,
    Generation,
    Prediction,
    Sampling,
    predict,
)
from flaxdl.runs.regression import Estimate  # noqa: E402
from flaxdl.runs.restored import RestoredRun, restore  # noqa: E402
from flaxdl.training import Diverged, Interrupted  # noqa: E402
from flaxdl.training.writers import LiveCurve, Writer  # noqa: E402
from flaxdl.version import __version__  # noqa: E402
from flaxdl.weights import export_weights, load_weights, state_dict  # noqa: E402

__all__ = [
    "BeamSearch",
    "Config",
    "Diverged",
    "Estimate",
    "Forecast",
    "Generation",
    "Init",
    "Interrupted",
    "LearningRateCurve",
    "LiveCurve",
    "MultiLabelPrediction",
    "Prediction",
    "RestoredRun",
    "Result",
    "Sampling",
    "SaveError",
    "UserError",
    "Writer",
    "__version__",
    "evaluate",
    "evaluate_pretrained",
    "export",
    "export_weights",
    "find_learning_rate",
    "load_config",
    "load_pretrained",
    "load_weights",
    "predict",
    "restore",
    "state_dict",
    "train",
    "visualize",
]
