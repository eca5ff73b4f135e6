"""The trainer: tasks, optimizers, the step, checkpoints and the loop."""

from flaxdl.training.distributed.mesh import MeshShape
from flaxdl.training.interruption import Interrupted
from flaxdl.training.loop import Diverged, Loop
from flaxdl.training.optimizers import (
    SGD,
    Adam,
    AdamW,
    Cosine,
    LinearDecay,
    Optimizer,
    Schedule,
    StepDecay,
)
from flaxdl.training.precision import Precision
from flaxdl.training.rewind import Rewind
from flaxdl.training.selection import Selection
from flaxdl.training.state import TrainState
from flaxdl.training.steps import Steps
from flaxdl.training.tasks import Classification, LanguageModeling, SequenceToSequence, Task

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Classification",
    "Cosine",
    "Diverged",
    "Interrupted",
    "LanguageModeling",
    "LinearDecay",
    "Loop",
    "MeshShape",
    "Optimizer",
    "Precision",
    "Rewind",
    "Schedule",
    "Selection",
    "SequenceToSequence",
    "StepDecay",
    "Steps",
    "Task",
    "TrainState",
]
