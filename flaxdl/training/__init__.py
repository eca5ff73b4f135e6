"""The trainer: tasks, optimizers, training step, checkpoints and training loop."""

from flaxdl.training.distributed.mesh import MeshShape
from flaxdl.training.ema import EMA
from flaxdl.training.interruption import Interrupted
from flaxdl.training.loop import Diverged, Loop
from flaxdl.training.optimizers import (
    SGD,
    Adam,
    AdamW,
    Lion,
    Muon,
    Optimizer,
)
from flaxdl.training.precision import Precision
from flaxdl.training.schedules import Cosine, LinearDecay, OneCycle, Schedule, StepDecay
from flaxdl.training.selection import Selection
from flaxdl.training.spike_recovery import SpikeRecovery
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.tasks import (
    BertPreTraining,
    Classification,
    Forecasting,
    LanguageModeling,
    MaskedLanguageModeling,
    MultiLabelClassification,
    Regression,
    SequenceToSequence,
    Task,
)

__all__ = [
    "EMA",
    "SGD",
    "Adam",
    "AdamW",
    "BertPreTraining",
    "Classification",
    "Cosine",
    "Diverged",
    "Forecasting",
    "Interrupted",
    "LanguageModeling",
    "LinearDecay",
    "Lion",
    "Loop",
    "MaskedLanguageModeling",
    "MeshShape",
    "MultiLabelClassification",
    "Muon",
    "OneCycle",
    "Optimizer",
    "Precision",
    "Regression",
    "Schedule",
    "Selection",
    "SequenceToSequence",
    "SpikeRecovery",
    "StepDecay",
    "Steps",
    "Task",
    "TrainState",
]
