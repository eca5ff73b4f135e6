"""The classic architectures of deep learning in Flax, number for number what PyTorch computes."""

from flaxdl.backend.xla_flags import set_cpu_flags

set_cpu_flags()  # before anything starts JAX's backend

from flaxdl.config import Config, Init  # noqa: E402
from flaxdl.config_files import load_config  # noqa: E402
from flaxdl.run import Result, train  # noqa: E402
from flaxdl.runs.evaluation import evaluate  # noqa: E402
from flaxdl.runs.prediction import Prediction, Sampling, Writing, predict  # noqa: E402
from flaxdl.version import __version__  # noqa: E402

__all__ = [
    "Config",
    "Init",
    "Prediction",
    "Result",
    "Sampling",
    "Writing",
    "__version__",
    "evaluate",
    "load_config",
    "predict",
    "train",
]
